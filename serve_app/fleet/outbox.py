"""Final reports, stored on disk until the orchestrator has accepted them.

    put ─► file ─► sent ─► accepted, or refused for good ─► file removed
                     └── anything else: kept and sent again, also after a restart

A 404 counts as final only after some time, as the orchestrator has been seen to send it for a live
job.

Each report is one file, written under a temporary name and renamed, so that a report is never
incomplete. Several processes may share the folder, such as a draining replica and its successor. In
the worst case a report is then sent twice, and the second one answered with 409.
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
from orchestrator.calls import GONE_STATUSES, UNKNOWN_STATUS
from orchestrator.client import FinalReport
from orchestrator.errors import CallRejected, OrchestratorError

logger = logging.getLogger(__name__)

Send = Callable[[FinalReport], Awaitable[None]]

# The job has ended or belongs to another worker, so this report can never be accepted.
FINAL_REFUSALS = GONE_STATUSES | {422}
UNKNOWN_S = 600.0  # guess: many times the 30 s after which progress reports stop a job
CAPACITY = 1000  # reports


@dataclass(frozen=True, slots=True)
class _Stored:
    """A report and the name of its file. Names sort by age."""

    name: str
    report: FinalReport

    @property
    def stored_at(self) -> float:
        """Unix seconds, 0 for a file that another program has put here."""
        head = self.name.partition("-")[0]
        return int(head) / 1e9 if head.isdigit() else 0.0


class Outbox:
    """A folder of unsent final reports.

    When `capacity` reports wait, `is_full` makes the workers stop claiming. No report is ever
    dropped to make room. After a round that left some reports, the next round begins with the next
    report, or after a pause that doubles from `first_pause_s` to `longest_pause_s`. A report that
    is answered 404 is dropped when it is `UNKNOWN_S` old.

    Args:
        clock: Unix seconds.
        write: writes the text of a report to its file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        capacity: int = CAPACITY,
        first_pause_s: float = 1.0,
        longest_pause_s: float = 60.0,
        clock: Callable[[], float] = time.time,
        write: Callable[[Path, str], None] = write_atomically,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._capacity = capacity
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._write = write
        # Reports that could not be written. They are lost if the process ends before they are sent.
        self._unsaved: dict[str, FinalReport] = {}
        self._written = asyncio.Event()
        self._settled: dict[str, asyncio.Event] = {}

    @property
    def is_full(self) -> bool:
        """Whether there may be no room for the next report."""
        return len(self._names()) + len(self._unsaved) >= self._capacity

    def pending(self) -> int:
        """Return how many reports wait."""
        return len(self._names()) + len(self._unsaved)

    async def put(self, report: FinalReport) -> str:
        """Store a report, which is then sent. Return its name, for `wait_settled`."""
        name = f"{int(self._clock() * 1e9):020d}-{os.getpid()}-{random.getrandbits(32):08x}.json"
        self._settled[name] = asyncio.Event()
        try:
            await asyncio.to_thread(self._write, self._folder / name, _to_json(report))
        except OSError as exc:
            logger.error("final report not stored, kept in memory", extra={"error": str(exc)})
            self._unsaved[name] = report
        self._written.set()
        return name

    async def wait_settled(self, name: str, timeout_s: float) -> bool:
        """Wait until a report of this process is accepted or refused. Return False if neither."""
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
        """Send the waiting reports, oldest first, until cancelled. Run this once per process."""
        failures = 0
        while True:
            self._written.clear()
            clean = await self._guarded_round(send)
            failures = 0 if clean else failures + 1
            await self._pause(failures)

    async def deliver_round(self, send: Send) -> bool:
        """Send each waiting report once. Return whether none is left."""
        clean = True
        for stored in await asyncio.to_thread(self._load, dict(self._unsaved)):
            try:
                await send(stored.report)
            except OrchestratorError as exc:
                if not self._is_final(exc, stored):
                    clean = False
                    _log(logging.WARNING, "final report not accepted yet", stored, exc)
                    if exc.status_code is None:
                        break  # no answer at all: the other reports would get none either
                    continue
                _log(logging.ERROR, "final report refused for good", stored, exc)
            await self._settle(stored.name)
        return clean

    async def _guarded_round(self, send: Send) -> bool:
        try:
            return await self.deliver_round(send)
        except Exception:
            # The boundary of a loop that no unexpected error may end, as reports depend on it.
            logger.exception("delivering final reports failed")
            return False

    async def _pause(self, failures: int) -> None:
        """Wait for the next report. After failures, wait no longer than the backoff."""
        if failures == 0:
            await self._written.wait()
            return
        ceiling = min(self._longest_pause_s, self._first_pause_s * 2 ** min(failures - 1, 10))
        with suppress(TimeoutError):
            # With jitter, so that the workers of a fleet do not all return at once after an outage.
            async with asyncio.timeout(ceiling * random.uniform(0.5, 1.0)):
                await self._written.wait()

    async def _settle(self, name: str) -> None:
        self._unsaved.pop(name, None)
        await asyncio.to_thread((self._folder / name).unlink, missing_ok=True)
        settled = self._settled.pop(name, None)
        if settled is not None:
            settled.set()

    def _is_final(self, exc: OrchestratorError, stored: _Stored) -> bool:
        if not isinstance(exc, CallRejected):
            return False
        if exc.status_code == UNKNOWN_STATUS:
            return self._clock() - stored.stored_at > UNKNOWN_S
        return exc.status_code in FINAL_REFUSALS

    def _names(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("*.json"))

    def _load(self, unsaved: dict[str, FinalReport]) -> list[_Stored]:
        """Return the waiting reports, oldest first. It runs in a thread: `unsaved` is a copy."""
        found = [_Stored(name, report) for name, report in unsaved.items()]
        for name in self._names():
            try:
                text = (self._folder / name).read_text()
            except FileNotFoundError:
                continue  # another process delivered it
            try:
                found.append(_Stored(name, FinalReport(**json.loads(text))))
            except (ValueError, TypeError):
                # It is damaged, or from another program. It is kept for the operator under another
                # name, so that this loop does not read it again.
                logger.error("unreadable report set aside", extra={"report": name})
                (self._folder / name).rename(self._folder / f"{name}.unreadable")
        return sorted(found, key=lambda stored: stored.name)


def _to_json(report: FinalReport) -> str:
    return json.dumps(asdict(report))


def _log(level: int, text: str, stored: _Stored, exc: OrchestratorError) -> None:
    logger.log(level, text, extra={"job_id": stored.report.job_id, "error": exc.message})
