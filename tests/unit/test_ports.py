"""Ports that are chosen before their owners listen on them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from serve_app.config import ports

HOST = "127.0.0.1"
GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_is_not_among_those_that_are_given_to_whoever_asks_for_any() -> None:
    first, last = map(int, GIVEN.read_text().split())
    if first < ports.PORTS.stop and last >= ports.PORTS.start:
        pytest.skip("this machine gives ports that Linux does not give by default")
    for _ in range(20):
        assert not first <= ports.free_port(HOST) <= last


def test_a_port_that_somebody_listens_on_is_not_chosen() -> None:
    with socket.create_server((HOST, 0)) as taken, socket.create_server((HOST, 0)) as ended:
        port, other = taken.getsockname()[1], ended.getsockname()[1]
        ended.close()
        assert ports.free_port(HOST, [port, other]) == other
        with pytest.raises(OSError, match="no port of"):
            ports.free_port(HOST, [port])
