"""The facts about the machine in every heartbeat. They are collected once, at the start."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil
from pydantic import JsonValue

logger = logging.getLogger(__name__)

GB = 1024**3
MEASURE_S = 5.0
MEASURE_BYTES = 100_000_000
MIN_BYTES = 100_000  # fewer would measure latency rather than bandwidth


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """The fields of `system_info` in the protocol. GB are 2^30 bytes. `download_speed_mbps` is in
    Mbit/s, None if it was not measured.
    """

    cpu_cores_physical: int
    cpu_cores_logical: int
    cpu_model: str
    ram_total_gb: float
    ram_available_gb: float
    disk_total_gb: float
    disk_free_gb: float
    download_speed_mbps: float | None = None

    def as_fields(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return asdict(self)


def collect_system_info(disk: Path, *, download_mbit_s: float | None = None) -> SystemInfo:
    """Collect the facts. `disk` is a folder on the disk that jobs use."""
    logical = psutil.cpu_count() or 1
    memory = psutil.virtual_memory()
    usage = psutil.disk_usage(str(disk))
    return SystemInfo(
        # Some virtual machines and ARM kernels do not report their physical cores.
        cpu_cores_physical=psutil.cpu_count(logical=False) or logical,
        cpu_cores_logical=logical,
        cpu_model=read_cpu_model(_cpuinfo()) or platform.processor() or platform.machine(),
        ram_total_gb=_gb(memory.total),
        ram_available_gb=_gb(memory.available),
        disk_total_gb=_gb(usage.total),
        disk_free_gb=_gb(usage.free),
        download_speed_mbps=download_mbit_s,
    )


async def measure_download_mbit_s(url: str) -> float | None:
    """Measure the download rate in Mbit/s for at most 5 s or 100 MB; None if that fails.

    Only addresses that the operator configured are used.
    """
    received = 0
    started = time.monotonic()
    try:
        async with (
            asyncio.timeout(2 * MEASURE_S),
            httpx.AsyncClient(timeout=MEASURE_S, follow_redirects=True) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
        ):
            response.raise_for_status()
            started = time.monotonic()  # leaves out name resolution and handshakes
            async for chunk in response.aiter_raw():
                received += len(chunk)
                if received >= MEASURE_BYTES or time.monotonic() - started >= MEASURE_S:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
        logger.warning("download rate not measured", extra={"reason": type(exc).__name__})
        return None
    if received < MIN_BYTES:
        return None
    elapsed = max(time.monotonic() - started, 1e-6)
    return round(received * 8 / elapsed / 1e6, 1)


def read_cpu_model(cpuinfo: str) -> str | None:
    """Return the processor's name from the text of /proc/cpuinfo. ARM kernels give none."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "cpu model") and value.strip():
            return " ".join(value.split())
    return None


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def _gb(size_bytes: int) -> float:
    return round(size_bytes / GB, 2)
