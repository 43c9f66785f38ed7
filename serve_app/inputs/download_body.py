"""The file that a download writes, and the limits of its size, time and speed.

Bytes are counted, hashed and written to a temporary file, in blocks and off the event loop. The
file is renamed when it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from musetalk_pipeline.errors import DownloadFailed, MediaTooLarge, Stage
from serve_app.inputs.pace import Pace

WRITE_BLOCK_BYTES = 1 << 20

# Gets the bytes that have arrived so far, and the size that the source declared, if it did.
OnBytes: TypeAlias = Callable[[int, int | None], object]


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """The limits of one download. The contract fixes the attempts and the least size."""

    max_bytes: int = 2000 * 1024 * 1024  # docs/protocol.md: WORKER_MAX_FILE_MB 2000
    min_bytes: int = 1000  # docs/protocol.md §1: "too small (< 1000 bytes)"
    total_s: float = 900.0
    attempt_s: float = 600.0
    connect_s: float = 15.0
    stall_s: float = 30.0
    min_bytes_per_s: float = 65536.0  # guess: half a megabit; 0 turns the rule off
    slow_s: float = 60.0  # over which that average is taken, and the time that a start may take
    attempts: int = 3
    backoff_s: float = 0.5  # before the second attempt; doubles, with jitter
    max_redirects: int = 5


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A complete file on disk. `sha256` is the hex digest of its bytes."""

    path: Path
    sha256: str
    size_bytes: int


class TryAgainError(Exception):
    """An attempt failed, but another one may succeed. `error` is reported if none is left."""

    def __init__(self, error: DownloadFailed) -> None:
        super().__init__(error.message)
        self.error = error


class Body:
    """The bytes so far, counted, hashed, and written in blocks off the event loop."""

    def __init__(
        self, part: Path, limits: DownloadLimits, shown: str, on_bytes: OnBytes | None = None
    ) -> None:
        self._part = part
        self._limits = limits
        self._shown = shown
        self._file: BinaryIO = part.open("wb")
        self._digest = hashlib.sha256()
        self._pending = bytearray()
        self._size_bytes = 0
        self._on_bytes = on_bytes
        self._declared_bytes: int | None = None
        self._pacing: tuple[Pace, asyncio.Timeout] | None = None

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def restart(self) -> None:
        """Drop everything. The next byte is the first."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self._pending.clear()
        self._size_bytes = 0

    @contextlib.asynccontextmanager
    async def paced(self) -> AsyncIterator[None]:
        """Cancel the block if bytes are added more slowly than the limits allow.

        Raises:
            TryAgainError: the block was cancelled.
        """
        now = asyncio.get_running_loop().time()
        pace = Pace(self._limits.min_bytes_per_s, self._limits.slow_s, now)
        timer = asyncio.timeout_at(pace.deadline)
        try:
            async with timer:
                self._pacing = pace, timer
                yield
        except TimeoutError as exc:
            if not timer.expired():
                raise
            raise TryAgainError(self._too_slow()) from exc
        finally:
            self._pacing = None

    def expect(self, size_bytes: int) -> None:
        """Refuse a declared size that is too large, before the first byte is read."""
        if size_bytes > self._limits.max_bytes:
            raise self._too_large()
        self._declared_bytes = size_bytes

    async def add(self, chunk: bytes) -> None:
        self._size_bytes += len(chunk)
        if self._size_bytes > self._limits.max_bytes:
            raise self._too_large()
        if self._pacing is not None:
            pace, timer = self._pacing
            pace.add(len(chunk), asyncio.get_running_loop().time())
            timer.reschedule(pace.deadline)
        if self._on_bytes is not None:
            self._on_bytes(self._size_bytes, self._declared_bytes)
        self._pending += chunk
        if len(self._pending) >= WRITE_BLOCK_BYTES:
            await self._flush()

    async def complete(self, target: Path) -> Downloaded:
        """Check the size and rename the file to `target`."""
        await self._flush()
        if self._size_bytes == 0:
            raise DownloadFailed("Download failed: the answer is empty.", url=self._shown)
        if self._size_bytes < self._limits.min_bytes:
            raise DownloadFailed(
                "Download failed: the answer is too small for a video or audio file "
                f"({self._size_bytes} bytes). Check what the address returns.",
                url=self._shown,
                size_bytes=self._size_bytes,
            )
        self._file.flush()
        os.replace(self._part, target)
        return Downloaded(target, self._digest.hexdigest(), self._size_bytes)

    async def _flush(self) -> None:
        block, self._pending = bytes(self._pending), bytearray()
        if self._pacing is None:
            await asyncio.to_thread(self._write, block)
            return
        # A slow disk is not the server's fault.
        pace, timer = self._pacing
        loop = asyncio.get_running_loop()
        began = loop.time()
        timer.reschedule(None)
        await asyncio.to_thread(self._write, block)
        pace.pause(loop.time() - began)
        timer.reschedule(pace.deadline)

    def _write(self, block: bytes) -> None:
        self._digest.update(block)
        self._file.write(block)

    def _too_slow(self) -> DownloadFailed:
        least = self._limits.min_bytes_per_s / 1024
        return DownloadFailed(
            f"Download failed: the server sends too slowly, less than {least:g} KiB a second.",
            hint="Send an address on a faster server. The operator of this worker can lower "
            "inputs.min_bytes_per_s.",
            url=self._shown,
        )

    def _too_large(self) -> MediaTooLarge:
        limit_mb = self._limits.max_bytes / (1 << 20)
        return MediaTooLarge(
            f"Download failed: the file is larger than the limit of {limit_mb:g} MB.",
            stage=Stage.DOWNLOAD,
            url=self._shown,
            limit_bytes=self._limits.max_bytes,
        )
