"""How long finished videos stay in the local folder: by age, and by total size.

A result is a video with the sidecar that names its job. Other files in the folder are never
removed. A result that was written or requested a short time ago stays, even if the folder is too
large. A result that is being sent stays readable, as any open file does.

Every replica that uses the folder may sweep it. Each removal holds the lock of the folder, and
reads the result again under that lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from musetalk_pipeline.files import sync_folder
from serve_app.config.settings import AppArgs
from serve_app.outputs.local import folder_lock
from serve_app.outputs.store import SIDECAR_SUFFIX, VIDEO_SUFFIX, object_name

logger = logging.getLogger(__name__)

SWEEP_S = 300.0
# Results that were written or requested within this stay. A slow reader requests its next piece
# some minutes later.
RECENT_S = 600.0
_MAX_SIDECAR_BYTES = 1 << 20
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class _StoredResult:
    name: str
    written: float  # seconds since the epoch
    used: float  # when it was last written or requested
    size_bytes: int


class Retention:
    """Removes old results from `folder`, oldest first, each video with its sidecar."""

    def __init__(
        self,
        folder: Path,
        keep_s: float,
        max_bytes: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._clock = clock

    def sweep(self) -> list[str]:
        """Remove the results that are too old or exceed the size. Return their names."""
        results = sorted(self._results(), key=lambda result: result.written)
        excess = sum(result.size_bytes for result in results) - self._max_bytes
        removed = []
        for result in results:
            is_old = result.written < self._clock() - self._keep_s
            if (is_old or excess > 0) and self._remove(result):
                removed.append(result.name)
                excess -= result.size_bytes
        if removed:
            logger.info("old results removed", extra={"results": len(removed)})
        return removed

    def start(self) -> None:
        """Sweep every few minutes, in a thread that ends with the process."""

        def loop() -> None:
            while True:
                try:
                    self.sweep()
                except Exception:  # the folder may be accessible again in the next round
                    logger.exception("old results not removed")
                time.sleep(SWEEP_S)

        threading.Thread(target=loop, name="retention", daemon=True).start()

    def _results(self) -> Iterator[_StoredResult]:
        for sidecar in self._folder.glob(f"*{SIDECAR_SUFFIX}"):
            result = self._read(sidecar.name.removesuffix(SIDECAR_SUFFIX))
            if result is not None:
                yield result

    def _read(self, name: str) -> _StoredResult | None:
        """Return the result of that name as it is now; None if there is none."""
        video, sidecar = self._paths(name)
        try:
            if not _is_ours(sidecar, name):
                return None
            written, used, size_bytes = sidecar.lstat().st_mtime, 0.0, sidecar.lstat().st_size
            with contextlib.suppress(FileNotFoundError):
                found = video.lstat()
                # Only the access time of the video counts, as reading the sidecar changes its own.
                used = found.st_atime
                written = max(written, found.st_mtime)
                size_bytes += found.st_size
        except OSError:  # it has just been removed
            return None
        return _StoredResult(name, written, max(written, used), size_bytes)

    def _remove(self, result: _StoredResult) -> bool:
        with folder_lock(self._folder, fcntl.LOCK_EX):
            now = self._read(result.name)
            if now is None or now.written != result.written:
                return False
            if now.used > self._clock() - RECENT_S:
                return False
            # The video first, because only the sidecar shows that a result may be removed.
            for path in self._paths(result.name):
                path.unlink(missing_ok=True)
        sync_folder(self._folder)
        return True

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self._folder / (name + VIDEO_SUFFIX), self._folder / (name + SIDECAR_SUFFIX)


def retention(args: AppArgs, folder: Path) -> Retention:
    """Return the retention that `results:` of the configuration sets."""
    rules = args.results
    return Retention(folder, rules.keep_days * DAY_S, rules.max_gb * 1e9)


def _is_ours(sidecar: Path, name: str) -> bool:
    """Return whether a sidecar names the job whose output has that name."""
    if sidecar.is_symlink() or not sidecar.is_file():
        return False
    if sidecar.stat().st_size > _MAX_SIDECAR_BYTES:
        return False
    try:
        document = json.loads(sidecar.read_bytes())
    except (ValueError, RecursionError):
        return False
    job_id = document.get("musetalk_job_id") if isinstance(document, dict) else None
    return isinstance(job_id, str) and object_name(job_id) == name
