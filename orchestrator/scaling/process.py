"""A provider whose machines are worker processes on this one: for trying a fleet, and for tests.

Each worker has an identity, a folder and a port of its own, and a guard (guard.py), which ends it
when it is asked to, or when this process is gone. The life of a worker:

1. `want` starts it, with the folder as its working folder.
2. It runs until `drain` or `close`: SIGTERM, then `grace_s` for its jobs, then SIGKILL.
3. A worker that ends by itself is replaced by the next `want`, with growing pauses if it keeps
   ending early.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.scaling.fleet import FleetError, Machine, MachineState

logger = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("guard.py")
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES")
LOCK, LOG = "worker.lock", "worker.log"
MAX_LOG_BYTES = 10_000_000
EARLY_S = 30.0  # a worker that ends sooner has probably failed to start (a guess)
MAX_PAUSE_S = 60.0
KEPT_FOLDERS = 5  # of workers that have ended, for their logs
END_S = 20.0  # the guard's own time after `grace_s`


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """How workers are started.

    `{worker_id}`, `{gpu_class}`, `{port}` and `{folder}` are replaced in `command` and in the
    values of `environment`. Apart from `environment`, workers see only a few harmless variables of
    this process, so they get none of its secrets.
    """

    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    max_workers: int = 4
    base_port: int = 8100
    grace_s: float = 60.0


@dataclass(slots=True)
class _Running:
    """A worker whose guard has not ended."""

    worker_id: str
    gpu_class: str
    port: int
    since: float
    guard: asyncio.subprocess.Process
    watch: asyncio.Task[None] | None = None
    is_draining: bool = False


class ProcessFleet:
    """Starts and ends worker processes. It belongs to the event loop that used it first."""

    def __init__(
        self,
        command: Sequence[str],
        folder: str | Path,
        environment: Mapping[str, str] | None = None,
        max_workers: int = 4,
        base_port: int = 8100,
        grace_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = ProcessOptions(
            command, Path(folder).resolve(), environment or {}, max_workers, base_port, grace_s
        )
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._early_ends: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._is_closed = False

    async def want(self, gpu_class: str, count: int) -> None:
        """Start workers until `count` of the class are not draining.

        Raises:
            FleetError: `max_workers` are running already, or a worker could not be started.
        """
        if self._is_closed:
            raise FleetError("The fleet is closed.")
        now = self._clock()
        if now < self._not_before.get(gpu_class, now):
            return
        active = [
            one
            for one in self._running.values()
            if one.gpu_class == gpu_class and not one.is_draining
        ]
        for _ in range(count - len(active)):
            await self._start(gpu_class, self._free_port())

    async def have(self) -> Sequence[Machine]:
        """Return the workers whose processes have not ended."""
        now = self._clock()
        return tuple(
            Machine(
                one.worker_id,
                one.gpu_class,
                MachineState.DRAINING if one.is_draining else MachineState.RUNNING,
                now - one.since,
            )
            for one in self._running.values()
        )

    async def drain(self, worker_ids: Collection[str]) -> None:
        """Send SIGTERM to these workers. They stay in `have` until they have ended."""
        for worker_id in worker_ids:
            one = self._running.get(worker_id)
            if one is not None and not one.is_draining:
                one.is_draining = True
                assert one.guard.stdin is not None
                one.guard.stdin.close()

    async def close(self) -> None:
        """Drain all workers and wait until they have ended, at most `grace_s` and some seconds."""
        self._is_closed = True
        await self.drain(list(self._running))
        watches = [one.watch for one in self._running.values() if one.watch is not None]
        if watches:
            _, late = await asyncio.wait(watches, timeout=self._options.grace_s + END_S)
            for watch in late:
                logger.error("a worker did not end", extra={"worker_id": watch.get_name()})

    def _free_port(self) -> int:
        """Return the first port that no worker of this fleet has.

        Raises:
            FleetError: all are taken.
        """
        used = {one.port for one in self._running.values()}
        base = self._options.base_port
        for port in range(base, base + self._options.max_workers):
            if port not in used:
                return port
        raise FleetError(f"All {self._options.max_workers} workers of this machine are in use.")

    async def _start(self, gpu_class: str, port: int) -> None:
        worker_id = f"local-{secrets.token_hex(4)}"
        folder = self._options.folder / worker_id
        filled = {
            "worker_id": worker_id,
            "gpu_class": gpu_class,
            "port": str(port),
            "folder": str(folder),
        }
        try:
            _remove_old_folders(self._options.folder)
            folder.mkdir(mode=0o700, parents=True)
            guard = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(GUARD)),
                *("--log", str(folder / LOG), "--lock", str(folder / LOCK)),
                *("--grace-s", str(self._options.grace_s)),
                *("--max-log-bytes", str(MAX_LOG_BYTES), "--"),
                *(_fill(word, filled) for word in self._options.command),
                cwd=folder,
                env=self._environment(filled),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # so that Ctrl-C reaches only this process
            )
        except OSError as exc:
            raise FleetError(f"A worker could not be started: {exc}.") from exc
        one = _Running(worker_id, gpu_class, port, self._clock(), guard)
        self._running[worker_id] = one
        one.watch = asyncio.create_task(self._until_end(one), name=worker_id)
        logger.info("worker started", extra={"worker_id": worker_id, "gpu_class": gpu_class})

    def _environment(self, filled: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        own = {name: _fill(value, filled) for name, value in self._options.environment.items()}
        return inherited | {"WORKER_ID": filled["worker_id"]} | own

    async def _until_end(self, one: _Running) -> None:
        code = await one.guard.wait()
        assert one.guard.stdin is not None
        one.guard.stdin.close()
        now = self._clock()
        del self._running[one.worker_id]
        if one.is_draining or now - one.since >= EARLY_S:
            self._early_ends.pop(one.gpu_class, None)
        else:
            early = self._early_ends[one.gpu_class] = self._early_ends.get(one.gpu_class, 0) + 1
            self._not_before[one.gpu_class] = now + min(2.0**early, MAX_PAUSE_S)
        logger.info("worker ended", extra={"worker_id": one.worker_id, "exit_code": code})


def _fill(text: str, filled: Mapping[str, str]) -> str:
    """Replace the known names in braces. Other braces, as in JSON, stay what they are."""
    for name, value in filled.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _remove_old_folders(root: Path) -> None:
    """Keep the folders of the workers that ended last, and of all that run."""
    for folder in list(_ended_folders(root))[KEPT_FOLDERS:]:
        shutil.rmtree(folder, ignore_errors=True)


def _ended_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of workers whose guard has ended, the latest first."""
    locks = sorted(root.glob(f"local-*/{LOCK}"), key=_age, reverse=True)
    for lock in locks:
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield lock.parent


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
