"""Ports that are free: what a configuration leaves open, and what the demo chooses."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

# Below those that Linux gives to whoever asks for any port (from 32768), and above those that Ray
# gives to its workers (10002 to 19999). A port is free for seconds before its owner listens, and
# the processes of a Ray session ask for dozens of any ports meanwhile.
PORTS = range(20_000, 32_000)


def is_free(host: str, port: int) -> bool:
    """Return whether `port` is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str, among: Sequence[int] = PORTS) -> int:
    """Return one of these ports that is free now.

    Raises:
        OSError: none is.
    """
    for port in random.sample(among, len(among)):
        if is_free(host, port):
            return port
    raise OSError(f"no port of {host} is free")
