"""Facts about this machine that a start depends on: GPU, CPUs, IPv6, ports."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil


def has_gpu(environ: Mapping[str, str]) -> bool:
    """Say whether an NVIDIA GPU is visible, without asking CUDA, which takes seconds."""
    if environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def has_ipv6() -> bool:
    """Say whether this machine has IPv6; some containers do not."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def cpus() -> int:
    """Return how many CPUs Ray will find here; a container may have fewer than its machine."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus())


def port_fault(host: str, port: int, remedy: str) -> Iterator[str]:
    """Yield a sentence if nothing can listen on `port` of `host` now."""
    if not 0 < port < 1 << 16:
        yield f"port {port} is out of range: {remedy}"
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                yield f"port {port} is taken{_taken_by(port)}: {remedy}"
            elif exc.errno == errno.EACCES:
                yield f"{host}:{port} cannot be listened on ({exc.strerror}): {remedy}"
            else:
                yield (
                    f"{host}:{port} cannot be listened on ({exc.strerror}): "
                    "set http_options.host to an address of this machine"
                )


def _taken_by(port: int) -> str:
    """Name the process that listens on `port`, if this user may know."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            address: Any = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                if connection.pid is None:
                    break
                words = " ".join(psutil.Process(connection.pid).cmdline()).split()
                command = " ".join(words)[:80]  # Ray pads the names of its processes
                return f" by process {connection.pid} ({command})"
    return ""
