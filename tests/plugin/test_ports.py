"""Ports for processes that are started in a moment."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin import ports


@given(st.integers(1, 20))
def test_free_ports_are_different_and_free(count: int) -> None:
    found = ports.free_ports(count)
    assert len(set(found)) == count
    for port in found:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_no_connection_is_given_a_free_port() -> None:
    taken = set()
    with socket.create_server(("127.0.0.1", ports.free_port())) as server:
        for _ in range(50):
            with socket.create_connection(server.getsockname()) as one:
                taken.add(one.getsockname()[1])
    assert max(ports.free_ports(200)) < min(taken)


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.free_port()
    monkeypatch.setattr(ports, "_LOWEST", first)
    monkeypatch.setattr(ports, "_first_outgoing", lambda: first + 2)
    with socket.create_server(("127.0.0.1", first)):
        assert ports.free_port() == first + 1
        with pytest.raises(OSError, match="no 2 ports"):
            ports.free_ports(2)
