"""Reports the progress of one job: every phase in order, and the newest state in between.

Reports are best effort and never delay the job.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from orchestrator.client import ClaimedJob, ProgressReport, WorkerClient
from orchestrator.errors import JobGone, JobUnknown, OrchestratorError
from serve_app.contract.outcomes import Phase, Progress
from serve_app.fleet.options import WorkerOptions

logger = logging.getLogger(__name__)

ENDED = frozenset({Phase.COMPLETED, Phase.FAILED})
MAX_UNSENT = 16  # phases that wait to be sent; a job has five for each start


class ProgressReporter:
    """Sends each new phase at once, and otherwise the newest state at most every interval.

    A phase that is over before it could be sent is sent all the same, in order. A state that does
    not change is repeated, because the answer shows whether the job was cancelled or given to
    another worker. `on_gone` is awaited once in that case: after a 409 or 410, or after several 404
    in a row over some time, since a single 404 has been seen for a live job.
    """

    def __init__(
        self,
        client: WorkerClient,
        job: ClaimedJob,
        options: WorkerOptions,
        *,
        on_gone: Callable[[], Awaitable[None]],
        batch_size: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._job = job
        self._options = options
        self._on_gone = on_gone
        self._batch_size = batch_size
        self._clock = clock
        self._newest = Progress(Phase.PREPARING, 0.0)
        self._report = self._newest_report()
        self._unsent: deque[ProgressReport] = deque([self._report], MAX_UNSENT)
        self._unknown, self._unknown_since = 0, 0.0
        self._changed = asyncio.Event()
        self._new_phase = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def fraction(self) -> float:
        """How far the job has come, 0 to 1."""
        return self._newest.fraction

    def start(self) -> None:
        """Start sending. The first report is `preparing`, as this kind of worker calls it."""
        self._task = asyncio.create_task(self._send_forever(), name="progress")

    def update(self, progress: Progress) -> None:
        """Take the job's newest state. Call this in the event loop's thread."""
        if progress.phase in ENDED:
            return  # only the final report may say that the job has ended
        phase = Phase.PREPARING if progress.phase is Phase.QUEUED else progress.phase.reported
        fraction = min(1.0, max(self._newest.fraction, progress.fraction))
        is_past_drawing = self._newest.phase is Phase.INFERRING and phase is not Phase.INFERRING
        if is_past_drawing and progress.frames_done > self._newest.frames_done:
            # The frames of a job with one segment are counted when that segment has been drawn.
            self._set(replace(progress, phase=Phase.INFERRING, fraction=self._newest.fraction))
        self._set(replace(progress, phase=phase, fraction=fraction))

    def _set(self, progress: Progress) -> None:
        self._newest = progress
        previous, self._report = self._report, self._newest_report()
        if self._report.phase != previous.phase:
            self._unsent.append(self._report)
            self._new_phase.set()
        elif self._unsent:
            self._unsent[-1] = self._report
        self._changed.set()

    async def close(self) -> None:
        """Send the phases that still wait, and stop within `progress_close_s`.

        A report that is on its way is waited for. If it arrived after the final report, a finished
        job would seem to run again.
        """
        self._closing = True
        self._changed.set()
        self._new_phase.set()
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=self._options.progress_close_s)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _send_forever(self) -> None:
        while self._unsent or not self._closing:
            self._changed.clear()
            self._new_phase.clear()
            report = self._unsent.popleft() if self._unsent else self._report
            try:
                is_sent = await self._send(report)
            except JobGone as exc:
                facts = {"job_id": self._job.job_id, "error": exc.message}
                logger.warning("the job no longer belongs to this worker", extra=facts)
                await self._on_gone()
                return
            if not is_sent and self._closing:
                return  # the final report must not wait for an orchestrator that does not answer
            if is_sent and (self._unsent or self._closing):
                continue
            await _set_within(self._new_phase, self._options.progress_interval_s)
            if not self._unsent:
                pause_s = self._options.progress_repeat_s - self._options.progress_interval_s
                await _set_within(self._changed, pause_s)

    async def _send(self, report: ProgressReport) -> bool:
        """Send a report. Return False if it should be sent again.

        Raises:
            JobGone: the job is no longer this worker's.
        """
        try:
            await self._client.progress(self._job, report)
        except JobGone:
            raise
        except JobUnknown as exc:
            self._count_unknown(exc)
            return True
        except OrchestratorError as exc:
            logger.info("progress not accepted", extra={"error": exc.message})
            self._unknown = 0
            if exc.retryable:
                self._put_back(report)
            return not exc.retryable
        except Exception:
            # Progress is best effort. No error in it may end the job.
            logger.exception("progress failed")
        self._unknown = 0
        return True

    def _put_back(self, report: ProgressReport) -> None:
        """Queue a report that was not accepted again, as its phase may be new."""
        if len(self._unsent) < MAX_UNSENT:
            self._unsent.appendleft(report if self._unsent else self._report)

    def _count_unknown(self, exc: JobUnknown) -> None:
        """Count a 404.

        Raises:
            JobGone: there were enough of them in a row, over a long enough time.
        """
        now = self._clock()
        if not self._unknown:
            self._unknown_since = now
        self._unknown += 1
        facts = {"job_id": self._job.job_id, "error": exc.message, "in_a_row": self._unknown}
        logger.warning("the orchestrator answered 404 for the job", extra=facts)
        is_long = now - self._unknown_since >= self._options.unknown_s
        if is_long and self._unknown >= self._options.unknown_answers:
            raise JobGone(exc.message, status_code=exc.status_code) from exc

    def _newest_report(self) -> ProgressReport:
        newest = self._newest
        inferring = newest.phase is Phase.INFERRING
        counts = {"frames_done": newest.frames_done, "frames_total": newest.frames_total}
        return self._client.as_reported(
            ProgressReport(
                fraction=newest.fraction,
                phase=newest.phase.value,
                metrics=counts if inferring else None,
                config_label=self._options.config_label,
                batch_size=self._batch_size,
            )
        )


async def _set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until `event` is set, at most `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
