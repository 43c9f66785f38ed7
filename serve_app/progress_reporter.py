"""Best-effort progress of one job: the newest state, not too often, never in the job's way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from orchestrator.client import ClaimedJob, JobProgress, WorkerClient
from orchestrator.errors import JobGone, OrchestratorError
from serve_app.schemas import Phase, Progress

logger = logging.getLogger(__name__)

ENDED = frozenset({Phase.COMPLETED, Phase.FAILED})
CLOSE_S = 6.0  # a little more than the progress call's own 5 s


class ProgressReporter:
    """Sends what `note` is told: at once on a new phase, else at most every `interval_s`.

    Without news the last state is sent again every `repeat_s`, because the answer is how a worker
    learns that its job was cancelled or given to somebody else. `on_gone` is then awaited, once.
    """

    def __init__(
        self,
        client: WorkerClient,
        job: ClaimedJob,
        *,
        on_gone: Callable[[], Awaitable[None]],
        interval_s: float,
        repeat_s: float,
        config_label: str | None,
        batch_size: int | None,
    ) -> None:
        self._client = client
        self._job = job
        self._on_gone = on_gone
        self._interval_s = interval_s
        self._repeat_s = repeat_s
        self._config_label = config_label
        self._batch_size = batch_size
        self._newest = Progress(Phase.PREPARING, 0.0)
        self._news = asyncio.Event()
        self._new_phase = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def fraction(self) -> float:
        """How far the job has come, 0 to 1."""
        return self._newest.fraction

    def start(self) -> None:
        """Begin sending, with `preparing`."""
        self._task = asyncio.create_task(self._send_forever(), name="progress")

    def note(self, progress: Progress) -> None:
        """Take the job's newest state; returns at once. Call it in the event loop's thread."""
        if progress.phase in ENDED:
            return  # the final report says so, and must be the only one that does
        phase = Phase.PREPARING if progress.phase is Phase.QUEUED else progress.phase.reported
        fraction = min(1.0, max(self._newest.fraction, progress.fraction))
        if phase is not self._newest.phase:
            self._new_phase.set()
        self._newest = replace(progress, phase=phase, fraction=fraction)
        self._news.set()

    async def close(self) -> None:
        """Stop sending. A request on its way is waited for: were it to arrive after the final
        report, a finished job would look as if it were running again.
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
        while not self._closing:
            self._news.clear()
            self._new_phase.clear()
            if not await self._send():
                return
            await _set_within(self._new_phase, self._interval_s)
            await _set_within(self._news, self._repeat_s - self._interval_s)

    async def _send(self) -> bool:
        """Send the newest state; False when the job is gone."""
        try:
            await self._client.progress(self._job, self._state())
        except JobGone as exc:
            logger.warning(
                "job is not ours any more", extra={"job_id": self._job.job_id, "error": exc.message}
            )
            await self._on_gone()
            return False
        except OrchestratorError as exc:
            logger.info("progress not accepted", extra={"error": exc.message})
        except Exception:
            # Progress is best effort: whatever this is, it is no reason to lose the job.
            logger.exception("progress failed")
        return True

    def _state(self) -> JobProgress:
        newest = self._newest
        inferring = newest.phase is Phase.INFERRING
        counts = {"frames_done": newest.frames_done, "frames_total": newest.frames_total}
        return JobProgress(
            fraction=newest.fraction,
            phase=newest.phase.value,
            metrics=counts if inferring else None,
            config_label=self._config_label,
            batch_size=self._batch_size,
        )


async def _set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until `event` is set, at most `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
