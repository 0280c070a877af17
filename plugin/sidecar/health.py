"""The image's health check, `python -m plugin.sidecar.health`: status 0 where it is ready.

It asks at the address that the environment names, or the file of settings, and loads nothing else,
as it runs every few seconds. Where callers must show a certificate it cannot ask.
"""

from __future__ import annotations

import os
import sys

from dotenv import dotenv_values

from plugin.sidecar.process import ask_health

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses to be asked instead


def healthy() -> bool:
    """Whether the sidecar is ready, with TLS or without."""
    config = os.environ.get("TITLECAST_CONFIG")
    # As `plugin.sidecar.settings` reads it, which would load the models' runtime.
    read = dotenv_values(config, interpolate=False, encoding="utf-8-sig") if config else {}
    filed = {name.upper(): text for name, text in read.items()}
    host = os.environ.get("TITLECAST_HOST") or filed.get("TITLECAST_HOST") or "127.0.0.1"
    port = int(os.environ.get("TITLECAST_PORT") or filed.get("TITLECAST_PORT") or 8900)
    return any(ask_health(_ANY.get(host, host), port, tls=tls) for tls in (False, True))


if __name__ == "__main__":
    sys.exit(0 if healthy() else 1)
