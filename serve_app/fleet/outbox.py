"""Final reports on disk until the orchestrator has taken them.

    put ─► file ─► sent ─► accepted, or refused for good ─► file gone
                     └── anything else: kept, tried again, also after a restart

404 is believed only after some time: the orchestrator has been seen to answer it for a live job.

One file per report, written under a temporary name and renamed, so that a report is there whole or
not at all. Several processes may share the folder (a draining replica and its successor): a report
is then sent twice at worst, and the second time answered with 409.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from musetalk_pipeline.files import write_atomically
from orchestrator.client import FinalReport
from orchestrator.errors import OrchestratorError, RequestRejected

logger = logging.getLogger(__name__)

Send = Callable[[FinalReport], Awaitable[None]]

# The job is settled or not this worker's: the same report can never be accepted.
FINAL_REFUSALS = frozenset({409, 410, 422})
UNKNOWN_STATUS = 404
UNKNOWN_S = 600.0  # guess: many times what progress has to wait for before it believes a 404


@dataclass(frozen=True, slots=True)
class _Stored:
    """A report and the name it is kept under; names sort by age."""

    name: str
    report: FinalReport

    @property
    def stored_at(self) -> float:
        """Unix seconds; names that are not ours are as old as can be."""
        head = self.name.partition("-")[0]
        return int(head) / 1e9 if head.isdigit() else 0.0


class Outbox:
    """A folder of unsent final reports.

    `capacity`: when that many wait, `is_full` tells the workers to claim nothing more; no report is
    ever dropped to make room. After a round that left something, the next begins with the next
    report, or after a pause that doubles from `first_pause_s` to `longest_pause_s`. A report that
    is answered 404 is given up when it is `unknown_s` old. `clock`: Unix seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        capacity: int = 1000,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
        unknown_s: float = UNKNOWN_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._capacity = capacity
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._unknown_s = unknown_s
        self._clock = clock
        # Reports that the disk did not take. They are sent like the others but die with us.
        self._unsaved: dict[str, FinalReport] = {}
        self._written = asyncio.Event()
        self._settled: dict[str, asyncio.Event] = {}

    @property
    def is_full(self) -> bool:
        """Whether the next report might find no room."""
        return len(self._names()) + len(self._unsaved) >= self._capacity

    def pending(self) -> int:
        """Return how many reports wait."""
        return len(self._names()) + len(self._unsaved)

    async def put(self, report: FinalReport) -> str:
        """Store a report and have it sent; the name to wait for it by."""
        name = f"{int(self._clock() * 1e9):020d}-{os.getpid()}-{random.getrandbits(32):08x}.json"
        self._settled[name] = asyncio.Event()
        try:
            await asyncio.to_thread(write_atomically, self._folder / name, _to_json(report))
        except OSError as exc:
            logger.error("final report not stored, kept in memory", extra={"error": str(exc)})
            self._unsaved[name] = report
        self._written.set()
        return name

    async def wait_settled(self, name: str, timeout_s: float) -> bool:
        """Wait until a report of this process is accepted or refused; False: still waiting."""
        settled = self._settled.get(name)
        if settled is None:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await settled.wait()
        except TimeoutError:
            return False
        finally:
            self._settled.pop(name, None)
        return True

    async def deliver_forever(self, send: Send) -> None:
        """Send what waits, oldest first, until cancelled. Run one per process."""
        failures = 0
        while True:
            self._written.clear()
            clean = await self._guarded_round(send)
            failures = 0 if clean else failures + 1
            await self._pause(failures)

    async def deliver_round(self, send: Send) -> bool:
        """Try each waiting report once; True if none is left."""
        clean = True
        for stored in await asyncio.to_thread(self._load, dict(self._unsaved)):
            try:
                await send(stored.report)
            except OrchestratorError as exc:
                if not self._is_final(exc, stored):
                    clean = False
                    _log(logging.WARNING, "final report not accepted yet", stored, exc)
                    if exc.status_code is None:
                        break  # nobody answers: the others would only wait for the same silence
                    continue
                _log(logging.ERROR, "final report refused for good", stored, exc)
            await self._settle(stored.name)
        return clean

    async def _guarded_round(self, send: Send) -> bool:
        try:
            return await self.deliver_round(send)
        except Exception:
            # The boundary of a loop that has to outlive every surprise: a report depends on it.
            logger.exception("delivering final reports failed")
            return False

    async def _pause(self, failures: int) -> None:
        """Wait for the next report; after failures no longer than the backoff."""
        if failures == 0:
            await self._written.wait()
            return
        ceiling = min(self._longest_pause_s, self._first_pause_s * 2 ** min(failures - 1, 10))
        with suppress(TimeoutError):
            # Jitter: a fleet must not come back in step after an outage.
            async with asyncio.timeout(ceiling * random.uniform(0.5, 1.0)):
                await self._written.wait()

    async def _settle(self, name: str) -> None:
        self._unsaved.pop(name, None)
        await asyncio.to_thread((self._folder / name).unlink, missing_ok=True)
        settled = self._settled.pop(name, None)
        if settled is not None:
            settled.set()

    def _is_final(self, exc: OrchestratorError, stored: _Stored) -> bool:
        if not isinstance(exc, RequestRejected):
            return False
        if exc.status_code == UNKNOWN_STATUS:
            return self._clock() - stored.stored_at > self._unknown_s
        return exc.status_code in FINAL_REFUSALS

    def _names(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("*.json"))

    def _load(self, unsaved: dict[str, FinalReport]) -> list[_Stored]:
        """Return what waits, oldest first. Runs in a thread: `unsaved` is a copy, `put` goes on."""
        found = [_Stored(name, report) for name, report in unsaved.items()]
        for name in self._names():
            try:
                text = (self._folder / name).read_text()
            except FileNotFoundError:
                continue  # another process delivered it
            try:
                found.append(_Stored(name, FinalReport(**json.loads(text))))
            except (ValueError, TypeError):
                # Not ours, or a damaged disk. Kept for a person, out of the way of the others.
                logger.error("unreadable report set aside", extra={"report": name})
                (self._folder / name).rename(self._folder / f"{name}.unreadable")
        return sorted(found, key=lambda stored: stored.name)


def _to_json(report: FinalReport) -> str:
    return json.dumps(asdict(report))


def _log(level: int, text: str, stored: _Stored, exc: OrchestratorError) -> None:
    logger.log(level, text, extra={"job_id": stored.report.job_id, "error": exc.message})
