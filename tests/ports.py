"""Ports for servers of other processes, and for servers that come back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Yield a port that the system gives to nobody who asks for any, until the context ends.

    Whoever names it may listen on it, as long as the address may be reused (SO_REUSEADDR), which
    servers allow. Until then, connections are refused.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
        yield held.getsockname()[1]
