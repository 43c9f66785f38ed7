"""One hop of a download by curl, for servers that violate HTTP in ways that curl tolerates.

curl is pinned to addresses that were checked before, follows no redirect and writes to a pipe, so
that the caller counts and stores the bytes. In every case the process is ended and reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.net.addresses import IpAddress, Location

# Exit codes (curl's manual, "EXIT CODES").
HTTP_ERROR, TIMEOUT, TOO_LARGE, BAD_CERTIFICATE = 22, 28, 63, 60
_MAX_REPORT_BYTES = 65536
_READ_BYTES = 65536


class Stalled(Exception):
    """No bytes were received for too long."""


@dataclass(frozen=True, slots=True)
class Report:
    """curl's report of a finished hop. `status` is 0 if there was none."""

    exit_code: int
    status: int
    redirect: str

    @classmethod
    def parse(cls, report: bytes, exit_code: int) -> Report:
        """Read the output of `write-out` in the configuration."""
        status, _, redirect = report.decode("utf-8", "replace").partition("\n")
        return cls(exit_code, int(status) if status.isdecimal() else 0, redirect)


def configuration(
    location: Location,
    addresses: Sequence[IpAddress],
    *,
    user_agent: str,
    certificates: Path,
    max_bytes: int,
    connect_s: float,
    total_s: float,
) -> str:
    """Return curl's configuration file for one hop.

    `total_s` also ends a curl process whose parent was killed.
    """
    options = {
        "url": location.url,
        "proto": "=http,https",
        "noproxy": "*",
        "max-redirs": "0",
        "max-filesize": str(max_bytes),
        "max-time": f"{total_s:.0f}",
        "connect-timeout": f"{max(connect_s, 1):.0f}",
        "user-agent": user_agent,
        "header": "Accept-Encoding: identity",
        "cacert": str(certificates),
        "write-out": "%{stderr}%{http_code}\\n%{redirect_url}",
    }
    if location.ip is None:
        pinned = ",".join(f"[{a}]" if a.version == 6 else str(a) for a in addresses)
        options["resolve"] = f"{location.host}:{location.port}:{pinned}"
    lines = [f'{name} = "{_quoted(value)}"' for name, value in options.items()]
    return "\n".join([*lines, "http1.1", "globoff", "silent", "fail", "no-netrc", ""])


async def run(
    program: str, config: str, stall_s: float, add: Callable[[bytes], Awaitable[None]]
) -> Report:
    """Make the hop that `config` describes, and pass every chunk of the body to `add`.

    Raises:
        Stalled: no byte was received within `stall_s`.
    """
    process = await asyncio.create_subprocess_exec(
        program,
        "--disable",  # no .curlrc; this has to be the first option
        "--config",
        "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # curl inherits nothing of this process: no proxy, no home with a .netrc, no locale.
        env={"PATH": os.defpath, "LC_ALL": "C"},
        start_new_session=True,
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        # The URL goes through a pipe, as every user of the machine can read command lines.
        process.stdin.write(config.encode("ascii"))
        process.stdin.close()
        while chunk := await _read(process.stdout, stall_s):
            await add(chunk)
        report = bytearray()
        while len(report) < _MAX_REPORT_BYTES and (text := await _read(process.stderr, stall_s)):
            report += text
        exit_code = await asyncio.wait_for(process.wait(), stall_s)
        return Report.parse(bytes(report), exit_code)
    finally:
        await asyncio.shield(_end(process))


async def _read(stream: asyncio.StreamReader, stall_s: float) -> bytes:
    try:
        async with asyncio.timeout(stall_s):
            return await stream.read(_READ_BYTES)
    except TimeoutError as exc:
        raise Stalled from exc


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the rest of the process group and reap the process."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    # asyncio's wait() also waits for the ends of the pipes, which it does not notice while a full
    # buffer has paused reading. A dead process has left a few buffers in them at most.
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(_READ_BYTES):
            pass
    await process.wait()


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
