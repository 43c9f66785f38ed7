"""One job, driven through the graph by the ingress.

    fetch ─► a place ─► open ─► for each segment, a few at a time:
                                prepare ─► encode ─┐
                                listen ────────────┴► generate ─► compose
                             ─► finish (stitch, upload)

More jobs are fetched than have a place, so a slow server holds up its own job only.

Results pass from stage to stage by reference; only encoded pieces and small facts come by here.
Serve retries nothing that a replica has accepted, so a segment whose replica dies is asked for
again from here. Every call has a deadline. Whatever ends the job ends its outstanding calls too.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from musetalk_pipeline.errors import (
    Stage,
)
from musetalk_pipeline.plan import Block, Segment
from musetalk_pipeline.stages import require_face
from serve_app.config.settings import DriverSettings
from serve_app.contract.outcomes import Phase, Progress
from serve_app.graph.blocks import BlockShelf, Loan
from serve_app.graph.made import MadeWatch, made_watch
from serve_app.graph.pools import Graph, Pool
from serve_app.graph.progress import ProgressMeter
from serve_app.graph.ray_errors import as_pipeline_error, cancel_calls, first_error, is_of_ray
from serve_app.graph.transfers import (
    Assignment,
    Attempt,
    Composed,
    Description,
    Fetched,
    Finished,
    Opened,
    PreviewPicture,
)
from serve_app.telemetry.metrics import CALLS_RETRIED

logger = logging.getLogger(__name__)

# A dead replica's replacement serves after 4.4 s on a quiet machine (measured); other replicas of
# the stage are asked after the first pause already.
RETRY_PAUSES_S = (0.5, 4.0, 10.0)
KEEP_S = 60.0  # how often the stages hear that an attempt lives
TELL_S = 10.0  # how long a stage may take to hear something about an attempt
PREVIEW_FRAMES = 9  # looked at for a face at most, and one is drawn


class JobDriver:
    """Drives jobs; holds nothing of a job after `run` returns."""

    def __init__(
        self,
        graph: Graph,
        settings: DriverSettings,
        open_timeout_s: float,
        describe: Callable[[], Description],
        places: int,
    ) -> None:
        """Make a driver that works on at most `places` jobs at a time, and fetches for more."""
        self._graph = graph
        self._settings = settings
        self._open_timeout_s = open_timeout_s
        self._describe = describe
        self._frame_s = settings.seconds_per_frame
        self._segments_in_flight = 0
        self._places = asyncio.Semaphore(places)  # first come, first served

    async def run(self, work: Assignment, report: Callable[[Progress], None]) -> Finished:
        """Do one job and return what became of it.

        Raises:
            PipelineError: the job cannot be done; `stage` says where it ended.
        """
        meter = ProgressMeter(report)
        meter.say(Phase.DOWNLOADING, 0.0)
        if work.lost_attempt_id is not None:
            await self._release(work.lost_attempt_id)
        attempt = Attempt.of(work)
        try:
            async with self._kept(attempt.attempt_id):
                with meter.spending():
                    fetched = await self._fetch(attempt)
                meter.fetched(fetched)
                async with self._place(meter):
                    meter.say(Phase.VALIDATING)
                    with meter.spending():
                        opened = await self._open(attempt, fetched)
                    meter.opened(opened)
                    pieces = await self._compose_all(opened, meter)
                    meter.uploading()
                    return await self._finish(opened, pieces, meter)
        finally:
            await asyncio.shield(self._release(work.attempt_id))

    async def preview(self, work: Assignment) -> PreviewPicture:
        """Make one composited frame of a job, to tune its options by.

        Raises:
            PipelineError: as `run`.
        """
        graph, attempt = self._graph, Attempt.of(work)
        try:
            opened = await self._open(attempt, await self._fetch(attempt))
            handle = graph.pick_pool().handle

            def chain() -> list[Any]:
                glimpse = graph.preprocessor.glimpse.remote(opened)
                drawn = handle.draw_glimpse.remote(glimpse, work.options)
                return [glimpse, drawn, graph.finisher.show.remote(glimpse, drawn, work.options)]

            timeout_s = self._settings.call_timeout_s + PREVIEW_FRAMES * self._frame_s
            picture: PreviewPicture = await self._call(chain, timeout_s, Stage.INFERENCE)
            return picture
        finally:
            await asyncio.shield(self._release(work.attempt_id))

    @contextlib.asynccontextmanager
    async def _place(self, meter: ProgressMeter) -> AsyncIterator[None]:
        """Hold one of the places. Waiting for it is no work, so the meter leaves it out."""
        asked_at = time.monotonic()
        async with self._places:
            meter.waited(time.monotonic() - asked_at)
            yield

    @contextlib.asynccontextmanager
    async def _kept(self, attempt_id: str) -> AsyncIterator[None]:
        """Say now and then that the attempt lives: a job may wait for its place for hours."""

        async def keep() -> None:
            while True:
                await asyncio.sleep(KEEP_S)
                await self._tell_stages("keep", attempt_id)

        keeper = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeper.cancel()

    async def _fetch(self, attempt: Attempt) -> Fetched:
        fetched: Fetched = await self._call(
            lambda: [self._graph.preprocessor.fetch.remote(attempt)],
            self._open_timeout_s + self._settings.call_timeout_s,
            Stage.DOWNLOAD,
        )
        return fetched

    async def _open(self, attempt: Attempt, fetched: Fetched) -> Opened:
        opened: Opened = await self._call(
            lambda: [self._graph.preprocessor.open.remote(attempt, fetched)],
            # A node that has not the files yet fetches them.
            self._open_timeout_s + self._settings.call_timeout_s,
            Stage.VALIDATION,
        )
        return opened

    async def _compose_all(self, opened: Opened, meter: ProgressMeter) -> list[Any]:
        """Return the responses that hold the encoded pieces, in order."""
        plan = opened.job.plan
        shelf = BlockShelf(plan, lambda block: self._avatar(opened, block), self._settings)
        window = asyncio.Semaphore(self._settings.window_segments)
        pieces: list[Any] = [None] * len(plan.segments)
        faces = 0

        async def one(segment: Segment) -> None:
            nonlocal faces
            try:
                work = self._segment(opened, segment, shelf, meter, made)
                pieces[segment.index], composed = await work
            finally:
                window.release()
            faces += composed.frames_with_face
            meter.composed(segment, composed)

        try:
            async with made_watch() as made, asyncio.TaskGroup() as tasks:
                for segment in plan.segments:
                    await window.acquire()
                    tasks.create_task(one(segment))
        except BaseExceptionGroup as group:
            # The first failure cancelled the other segments; it alone is worth telling.
            raise first_error(group) from None
        finally:
            shelf.close()
        require_face(faces, plan)
        return pieces

    async def _segment(
        self,
        opened: Opened,
        segment: Segment,
        shelf: "BlockShelf",
        meter: ProgressMeter,
        made: MadeWatch,
    ) -> tuple[Any, Composed]:
        """Compose one segment; its response (to pass on) and its value (to look at)."""
        loan: Loan | None = None

        def chain() -> list[Any]:
            nonlocal loan
            if loan is not None:
                shelf.drop(loan)  # whatever failed may have been the block: make it anew
                meter.lost(segment)
            loan = shelf.borrow(segment.block)
            graph, options = self._graph, opened.work.options
            speech = graph.preprocessor.listen.remote(opened, segment, options.speech)
            drawn = loan.pool.handle.generate.remote(loan.response, speech, segment, options.speech)
            piece = graph.finisher.compose.remote(
                opened, loan.response, drawn, segment, loan.is_first
            )
            if loan.is_first:
                made.watch(loan.prepared, lambda: meter.prepared(segment.block))
            mine = loan

            def is_drawn() -> None:
                if mine is loan:  # else it failed, and another try is on its way
                    meter.drawn(segment)

            made.watch(drawn, is_drawn)
            return [speech, drawn, piece]

        self._segments_in_flight += 1
        try:
            kept: list[Any] = []
            work_s = len(segment) * self._frame_s
            # Calls queue behind those of other jobs, so the time allowed grows with their number.
            timeout_s = self._settings.call_timeout_s + work_s * self._segments_in_flight
            composed = await self._call(chain, timeout_s, Stage.INFERENCE, kept)
            return kept[-1], composed
        finally:
            self._segments_in_flight -= 1
            if loan is not None:
                shelf.give_back(loan)

    def _avatar(self, opened: Opened, block: Block) -> tuple[Pool, list[Any]]:
        pool = self._graph.pick_pool()
        prepared = self._graph.preprocessor.prepare.remote(opened, block)
        return pool, [prepared, pool.handle.encode.remote(prepared, opened.work.options.mask)]

    async def _finish(self, opened: Opened, pieces: list[Any], meter: ProgressMeter) -> Finished:
        facts, about = meter.facts(), self._describe()
        finished: Finished = await self._call(
            lambda: [self._graph.finisher.finish.remote(opened, facts, about, *pieces)],
            self._settings.finish_timeout_s,
            Stage.UPLOAD,
        )
        return finished

    async def _call(
        self,
        make: Callable[[], list[Any]],
        timeout_s: float,
        stage: Stage,
        kept: list[Any] | None = None,
    ) -> Any:
        """Await the last response that `make` returns; make them anew if a replica is at fault.

        `kept` receives the responses that succeeded.
        """
        for attempt in range(1, self._settings.tries + 1):
            responses = make()
            try:
                async with asyncio.timeout(timeout_s):
                    value = await responses[-1]
            except BaseException as exc:
                cancel_calls(responses)
                if not isinstance(exc, Exception) and not is_of_ray(exc):
                    raise
                error = as_pipeline_error(exc, stage)
                if not error.retryable or attempt == self._settings.tries:
                    raise error from exc
                CALLS_RETRIED.inc(tags={"stage": str(stage)})
                logger.warning(
                    "call failed, asking again",
                    extra={
                        "stage": str(stage),
                        "try": attempt,
                        "error": error.message,
                        "cause": f"{type(exc).__name__}: {exc}"[:500],
                    },
                )
            else:
                if kept is not None:
                    kept[:] = responses
                return value
            await asyncio.sleep(RETRY_PAUSES_S[min(attempt, len(RETRY_PAUSES_S)) - 1])
        raise AssertionError("unreachable: the last try returns or raises")

    async def _release(self, attempt_id: str) -> None:
        """Remove the attempt's scratch. What this misses, the janitors of the stages find."""
        await self._tell_stages("release", attempt_id)

    async def _tell_stages(self, method: str, attempt_id: str) -> None:
        """Call a method of both stages that keep scratch. A call that fails is only logged."""
        for stage in (self._graph.preprocessor, self._graph.finisher):
            try:
                async with asyncio.timeout(TELL_S):
                    await getattr(stage, method).remote(attempt_id)
            except BaseException as exc:  # Ray raises anything for a call that cannot be sent
                if not isinstance(exc, Exception) and not is_of_ray(exc):
                    raise
                extra = {"attempt": attempt_id, "call": method, "error": type(exc).__name__}
                logger.warning("a stage was not told about an attempt's scratch", extra=extra)
