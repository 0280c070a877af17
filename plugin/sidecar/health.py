"""The image's health check, `python -m plugin.sidecar.health`: status 0 where it is ready.

It asks at the address that the environment names, and loads nothing else, as it runs every few
seconds. Where callers must show a certificate it cannot ask.
"""

from __future__ import annotations

import os
import sys

from plugin.sidecar.process import ask_health

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses to be asked instead


def healthy() -> bool:
    """Whether the sidecar is ready; with TLS or without, which a file of settings may say."""
    host = os.environ.get("TITLECAST_HOST") or "127.0.0.1"
    port = int(os.environ.get("TITLECAST_PORT") or 8900)
    return any(ask_health(_ANY.get(host, host), port, tls=tls) for tls in (False, True))


if __name__ == "__main__":
    sys.exit(0 if healthy() else 1)
