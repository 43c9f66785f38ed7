"""Which jobs a worker identity holds, on disk, and which process owns that identity.

A replica that is killed while it runs a job restarts within seconds under the same identity. Its
heartbeats continue, so the orchestrator cannot detect it and would wait for ever. The new process
therefore reads from here which jobs the old one had claimed, and runs them again.

While an old replica drains, its successor has the same identity. Two sets of heartbeats would
contradict each other, so one process owns the identity. It holds a file lock, which the kernel
frees however the process ends. A process that waits for the lock touches a second file, so that an
owner without jobs can hand the identity over (`has_successor`, `release`).
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

SUCCESSOR_S = 30.0  # a waiting process tries to acquire the lock at every heartbeat


def _new_key() -> str:
    return f"{time.time_ns():020d}-{random.getrandbits(32):08x}"


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A claimed job.

    `starts` counts how often a process has started it. `key` belongs to this claim, as the same job
    may be handed out twice. Keys sort by age.
    """

    job: ClaimedJob
    starts: int = 0
    key: str = field(default_factory=_new_key)


class ClaimJournal:
    """The held jobs of one worker identity, in one file each, in `folder`."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Identities come from the environment. A digest is a safe file name for any of them.
        self._stem = hashlib.sha256(worker_id.encode()).hexdigest()[:24]
        self._folder = folder
        self._lock_path = folder / f"{self._stem}.lock"
        self._wanted_path = folder / f"{self._stem}.wanted"
        self._lock_fd: int | None = None
        self._guard = threading.Lock()
        self._cleared: set[str] = set()  # keys of finished jobs whose files cannot be removed

    def acquire(self) -> bool:
        """Own the identity unless another process does; return whether this process owns it.

        May be called from any thread, any number of times.
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

    def has_successor(self) -> bool:
        """Return whether another process has recently tried to own the identity."""
        try:
            return time.time() - self._wanted_path.stat().st_mtime < SUCCESSOR_S
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let another process own the identity."""
        with self._guard:
            fd, self._lock_fd = self._lock_fd, None
            if fd is not None:
                os.close(fd)

    def read(self) -> tuple[HeldJob, ...]:
        """Return the stored jobs, the oldest first. May be called from any thread."""
        found = (self._read(path) for path in sorted(self._folder.glob(f"{self._stem}*.held")))
        return tuple(held for held in found if held is not None and held.key not in self._cleared)

    async def start(self, held: HeldJob) -> HeldJob:
        """Store one more start of `held`. A full disk does not stop the job."""
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
        """Remove a job whose end is in the outbox, or that belongs to another worker.

        If its file cannot be removed, only a restart runs the job again.
        """
        try:
            await asyncio.to_thread(self._path(held.key).unlink, missing_ok=True)
        except OSError as exc:
            logger.error("claim not removed", extra={"error": str(exc)})
            self._cleared.add(held.key)

    def _path(self, key: str) -> Path:
        return self._folder / (f"{self._stem}.{key}.held" if key else f"{self._stem}.held")

    def _read(self, path: Path) -> HeldJob | None:
        # An older release, which held one job at most, stored it without a key.
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
            # The orchestrator's own lease still returns the job to the queue.
            logger.exception("claim journal unreadable, set aside")
            with suppress(OSError):
                path.rename(path.with_suffix(".unreadable"))
            return None
