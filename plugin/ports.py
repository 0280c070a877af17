"""Ports for processes of ours that are started in a moment."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

# Linux gives outgoing connections ports of this range, https://docs.kernel.org/networking/ip-sysctl
# (ip_local_port_range): one that is free now could be one's local end before its node listens.
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 20_000  # below are those that other services are known for


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that nobody listens on at this moment.

    The system gives them to no outgoing connection, unless it may give these nearly all. Raises
    OSError where there are not so many.
    """
    ports = list(range(_LOWEST, _first_outgoing()))
    random.shuffle(ports)  # two that look at the same time find different ones
    found: list[int] = []
    with contextlib.ExitStack() as stack:  # held together, or the same one would come twice
        for port in ports:
            if len(found) == count:
                break
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind((host, port))
                found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} ports of {host} are free from {_LOWEST} on: end what holds them")
    return found


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]


def _first_outgoing() -> int:
    """The first port that the system gives outgoing connections."""
    try:
        first = int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768  # Linux's own choice, below what other systems take
    return first if first > _LOWEST + 1000 else 65_536
