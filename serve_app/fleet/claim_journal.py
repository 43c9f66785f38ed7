"""Which jobs a worker identity holds, on disk, and which process speaks for that identity.

A replica that is killed in mid-job comes back within seconds under the same identity. Its
heartbeats go on, so the orchestrator does not notice and waits for ever, unless the new process
knows what the old one had claimed. It reads that here, and does the job again.

While an old replica drains, its successor has the same identity; two sets of heartbeats would
contradict each other. A file lock decides: it is held for the life of a process, and the kernel
frees it however that process ends. Who waits for it says so by touching a second file, so that a
predecessor that has nothing left to do can make room (`is_wanted`, `release`).
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from musetalk_pipeline.files import write_atomically
from orchestrator.client import ClaimedJob

logger = logging.getLogger(__name__)

WANTED_S = 30.0  # a process that waits tries at every heartbeat


def _new_key() -> str:
    return f"{time.time_ns():020d}-{random.getrandbits(32):08x}"


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A claimed job. `starts`: how often a process has begun to work on it. `key`: of this claim,
    since the same job may be handed out twice; keys sort by age.
    """

    job: ClaimedJob
    starts: int = 0
    key: str = field(default_factory=_new_key)


class ClaimJournal:
    """The held jobs of one worker identity, a file each, in `folder`."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Identities come from the environment; a digest is a safe file name for any of them.
        self._stem = hashlib.sha256(worker_id.encode()).hexdigest()[:24]
        self._folder = folder
        self._lock_path = folder / f"{self._stem}.lock"
        self._wanted_path = folder / f"{self._stem}.wanted"
        self._lock_fd: int | None = None
        self._guard = threading.Lock()
        self._cleared: set[str] = set()  # keys whose files the disk did not let go

    def acquire(self) -> bool:
        """Tell whether this process speaks for the identity, becoming it if nobody is.

        May be called from any thread, as often as wanted.
        """
        with self._guard:
            if self._lock_fd is not None:
                return True
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                self._wanted_path.touch(mode=0o600)
                return False
            self._lock_fd = fd
            return True

    def is_wanted(self) -> bool:
        """Tell whether another process has lately tried to speak for the identity."""
        try:
            return time.time() - self._wanted_path.stat().st_mtime < WANTED_S
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let another process speak for the identity."""
        with self._guard:
            fd, self._lock_fd = self._lock_fd, None
            if fd is not None:
                os.close(fd)

    def read(self) -> tuple[HeldJob, ...]:
        """Return the jobs that are stored, the oldest first. May be called from any thread."""
        found = (self._read(path) for path in sorted(self._folder.glob(f"{self._stem}*.held")))
        return tuple(held for held in found if held is not None and held.key not in self._cleared)

    async def start(self, held: HeldJob) -> HeldJob:
        """Store that work on `held` begins once more. A full disk does not stop the job."""
        started = replace(held, starts=held.starts + 1)
        text = json.dumps(
            {
                "job_id": started.job.job_id,
                "payload": dict(started.job.payload),
                "starts": started.starts,
            }
        )
        try:
            await asyncio.to_thread(write_atomically, self._path(held.key), text)
        except OSError as exc:
            logger.error("claim not stored", extra={"error": str(exc)})
        return started

    async def clear(self, held: HeldJob) -> None:
        """Forget a job: its end is in the outbox, or it is somebody else's. A disk that does not
        let go of it does not make the job begin anew, but for a restart.
        """
        try:
            await asyncio.to_thread(self._path(held.key).unlink, missing_ok=True)
        except OSError as exc:
            logger.error("claim not removed", extra={"error": str(exc)})
            self._cleared.add(held.key)

    def _path(self, key: str) -> Path:
        return self._folder / (f"{self._stem}.{key}.held" if key else f"{self._stem}.held")

    def _read(self, path: Path) -> HeldJob | None:
        # Without a key: what an older release stored, which knew one job at a time.
        key = path.name.removeprefix(self._stem).removesuffix(".held").strip(".")
        try:
            fields = json.loads(path.read_text())
            return HeldJob(ClaimedJob(fields["job_id"], fields["payload"]), fields["starts"], key)
        except FileNotFoundError:
            return None
        except OSError:
            logger.exception("claim journal unreadable")
            return None
        except (ValueError, KeyError, TypeError):
            # Without it the orchestrator's own lease still returns the job to the queue.
            logger.exception("claim journal unreadable, set aside")
            with suppress(OSError):
                path.rename(path.with_suffix(".unreadable"))
            return None
