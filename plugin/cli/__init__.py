"""The `titlecast` command: one module per command, thin over the libraries.

To a sidecar SIGHUP means that models are to be loaded anew. Before it has begun with the first
there is nothing to load anew, and the signal would end it: so it is ignored from here on, before
the commands are loaded, which takes a while.
"""

import signal
import sys

_command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
if _command == "serve" and hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
