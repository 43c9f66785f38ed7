"""Best-effort progress of one job: every phase in order, the newest state, never in its way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from orchestrator.client import ClaimedJob, JobProgress, WorkerClient
from orchestrator.errors import JobGone, JobUnknown, OrchestratorError
from serve_app.contract.outcomes import Phase, Progress
from serve_app.fleet.options import WorkerOptions

logger = logging.getLogger(__name__)

ENDED = frozenset({Phase.COMPLETED, Phase.FAILED})
CLOSE_S = 6.0  # a little more than the progress call's own 5 s
MAX_UNSENT = 16  # phases that wait to be sent; a job has five, and more only when it starts again


class ProgressReporter:
    """Sends what `note` is told: each new phase at once, else the newest at most every interval.

    A phase that is over before it could be sent is sent all the same, in order. Without news the
    last state is sent again now and then, because the answer is how a worker learns that its job
    was cancelled or given to somebody else. `on_gone` is then awaited, once: after a 409 or 410, or
    after several 404 in a row over some time, since one 404 has been seen for a live job.
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
        self._said = self._state()
        self._unsent: deque[JobProgress] = deque([self._said], MAX_UNSENT)
        self._unknown, self._unknown_since = 0, 0.0
        self._news = asyncio.Event()
        self._new_phase = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def fraction(self) -> float:
        """How far the job has come, 0 to 1."""
        return self._newest.fraction

    def start(self) -> None:
        """Begin sending, with `preparing`, or what this kind of worker calls that."""
        self._task = asyncio.create_task(self._send_forever(), name="progress")

    def note(self, progress: Progress) -> None:
        """Take the job's newest state; returns at once. Call it in the event loop's thread."""
        if progress.phase in ENDED:
            return  # the final report says so, and must be the only one that does
        phase = Phase.PREPARING if progress.phase is Phase.QUEUED else progress.phase.reported
        fraction = min(1.0, max(self._newest.fraction, progress.fraction))
        is_past_drawing = self._newest.phase is Phase.INFERRING and phase is not Phase.INFERRING
        if is_past_drawing and progress.frames_done > self._newest.frames_done:
            # Where one segment is all, the frames are counted when they are no longer being drawn.
            self._say(replace(progress, phase=Phase.INFERRING, fraction=self._newest.fraction))
        self._say(replace(progress, phase=phase, fraction=fraction))

    def _say(self, progress: Progress) -> None:
        self._newest = progress
        said, self._said = self._said, self._state()
        if self._said.phase != said.phase:
            self._unsent.append(self._said)
            self._new_phase.set()
        elif self._unsent:
            self._unsent[-1] = self._said
        self._news.set()

    async def close(self) -> None:
        """Send the phases that still wait, and stop. All of it is waited for, some seconds at most:
        were a report to arrive after the final one, a finished job would look as if it were running
        again.
        """
        self._closing = True
        self._news.set()
        self._new_phase.set()
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=CLOSE_S)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _send_forever(self) -> None:
        while self._unsent or not self._closing:
            self._news.clear()
            self._new_phase.clear()
            state = self._unsent.popleft() if self._unsent else self._said
            try:
                is_taken = await self._send(state)
            except JobGone as exc:
                facts = {"job_id": self._job.job_id, "error": exc.message}
                logger.warning("job is not ours any more", extra=facts)
                await self._on_gone()
                return
            if not is_taken and self._closing:
                return  # the final report must not wait behind an orchestrator that does not answer
            if is_taken and (self._unsent or self._closing):
                continue
            await _set_within(self._new_phase, self._options.progress_interval_s)
            if not self._unsent:
                pause_s = self._options.progress_repeat_s - self._options.progress_interval_s
                await _set_within(self._news, pause_s)

    async def _send(self, state: JobProgress) -> bool:
        """Send a state; False if it should be sent again.

        Raises:
            JobGone: the job is not this worker's any more.
        """
        try:
            await self._client.progress(self._job, state)
        except JobGone:
            raise
        except JobUnknown as exc:
            self._count_unknown(exc)
            return True
        except OrchestratorError as exc:
            logger.info("progress not accepted", extra={"error": exc.message})
            self._unknown = 0
            if exc.retryable:
                self._keep(state)
            return not exc.retryable
        except Exception:
            # Progress is best effort: whatever this is, it is no reason to lose the job.
            logger.exception("progress failed")
        self._unknown = 0
        return True

    def _keep(self, state: JobProgress) -> None:
        """Put a state that did not get through back in front: its phase may be new to them."""
        if len(self._unsent) < MAX_UNSENT:
            self._unsent.appendleft(state if self._unsent else self._said)

    def _count_unknown(self, exc: JobUnknown) -> None:
        """Take note of a 404; believe it when it was said often and long enough."""
        now = self._clock()
        if not self._unknown:
            self._unknown_since = now
        self._unknown += 1
        facts = {"job_id": self._job.job_id, "error": exc.message, "in_a_row": self._unknown}
        logger.warning("the orchestrator does not know the job", extra=facts)
        is_long = now - self._unknown_since >= self._options.unknown_s
        if is_long and self._unknown >= self._options.unknown_answers:
            raise JobGone(exc.message, status_code=exc.status_code) from exc

    def _state(self) -> JobProgress:
        newest = self._newest
        inferring = newest.phase is Phase.INFERRING
        counts = {"frames_done": newest.frames_done, "frames_total": newest.frames_total}
        return self._client.worded(
            JobProgress(
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
