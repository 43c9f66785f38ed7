"""One job, driven through the graph by the ingress.

    fetch ─► a place ─► open ─► for each segment, a few at once:
                                prepare ─► encode ─┐
                                encode_audio ──────┴► generate ─► compose
                             ─► finish (stitch, upload)

More jobs are fetched than have a place, so a slow server delays its own job only.

Results pass from stage to stage by reference; only encoded pieces and costs pass through here.
Serve does not retry a call that a replica has accepted, so the driver repeats a segment whose
replica dies. Every call has a deadline. Whatever ends the job ends its outstanding calls too.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from musetalk_pipeline.artifacts import Piece
from musetalk_pipeline.cost import Measured
from musetalk_pipeline.errors import Stage
from musetalk_pipeline.plan import Block, Segment
from musetalk_pipeline.receipts.receipt import NO_PRICES, Prices
from musetalk_pipeline.stages import Digests, require_face
from serve_app.config.settings import DriverSettings
from serve_app.contract.outcomes import Phase, Progress
from serve_app.graph.block_cache import BlockCache, CachedBlock
from serve_app.graph.pools import Graph
from serve_app.graph.progress import ProgressMeter
from serve_app.graph.ray_errors import as_pipeline_error, cancel_calls, first_error, is_of_ray
from serve_app.graph.result_watch import ResultWatch, watch_results
from serve_app.graph.transfers import (
    Assignment,
    Attempt,
    Description,
    Finished,
    Opened,
    PreviewPicture,
)
from serve_app.telemetry.metrics import CALLS_RETRIED

logger = logging.getLogger(__name__)

PREVIEW_FRAMES = 9  # searched for a face at most, and one is drawn


@dataclass(frozen=True, slots=True)
class DriverPauses:
    """How long the driver waits.

    `retry_s`: before the second try of a call, the third, and all that follow. A dead replica's
    replacement serves after 4.4 s on a quiet machine (measured); other replicas of the stage may
    take the call after the first pause already. `keep_s`: between two calls that keep an attempt's
    scratch. `tell_s`: at most for a stage to answer such a call, or one that removes the scratch.
    """

    retry_s: tuple[float, ...] = (0.5, 4.0, 10.0)
    keep_s: float = 60.0
    tell_s: float = 10.0


DEFAULT_PAUSES = DriverPauses()


class JobDriver:
    """Drives jobs; holds nothing of a job after `run` returns."""

    def __init__(
        self,
        graph: Graph,
        settings: DriverSettings,
        open_timeout_s: float,
        describe: Callable[[], Description],
        places: int,
        *,
        pauses: DriverPauses = DEFAULT_PAUSES,
        prices: Callable[[], Prices] = lambda: NO_PRICES,
    ) -> None:
        """Make a driver that opens at most `places` jobs at once, and fetches more. `prices`: those
        of now, for receipts.
        """
        self._graph = graph
        self._settings = settings
        self._open_timeout_s = open_timeout_s
        self._describe = describe
        self._pauses = pauses
        self._prices = prices
        self._frame_s = settings.seconds_per_frame
        self._segments_in_flight = 0
        self._places = asyncio.Semaphore(places)  # first come, first served

    async def run(self, assignment: Assignment, report: Callable[[Progress], None]) -> Finished:
        """Do one job and return what became of it.

        Raises:
            PipelineError: the job cannot be done; `stage` names the stage that failed.
        """
        meter = ProgressMeter(report)
        meter.report(Phase.DOWNLOADING, 0.0)
        if assignment.lost_attempt_id is not None:
            await self._release(assignment.lost_attempt_id)
        attempt = Attempt.of(assignment)
        try:
            async with self._kept(attempt.attempt_id):
                with meter.spending():
                    fetched = await self._fetch(attempt)
                meter.fetched(fetched)
                async with self._place(meter):
                    meter.report(Phase.VALIDATING)
                    with meter.spending():
                        opened = await self._open(attempt, fetched)
                    meter.opened(opened)
                    pieces = await self._compose_all(opened.value, meter)
                    meter.uploading()
                    return await self._finish(opened.value, pieces, meter)
        finally:
            await asyncio.shield(self._release(assignment.attempt_id))

    async def preview(self, assignment: Assignment) -> PreviewPicture:
        """Make one composited frame of a job, to tune its options by.

        Raises:
            PipelineError: as `run`.
        """
        graph, attempt, options = self._graph, Attempt.of(assignment), assignment.options
        try:
            opened = await self._open(attempt, await self._fetch(attempt))
            handle = graph.pick_pool().handle

            def chain() -> list[Any]:
                frame = graph.preprocessor.pick_preview_frame.remote(opened.value)
                drawn = handle.draw_preview.remote(frame, options)
                return [frame, drawn, graph.finisher.compose_preview.remote(frame, drawn, options)]

            timeout_s = self._settings.call_timeout_s + PREVIEW_FRAMES * self._frame_s
            picture: PreviewPicture = await self._call(chain, timeout_s, Stage.INFERENCE)
            return picture
        finally:
            await asyncio.shield(self._release(assignment.attempt_id))

    @contextlib.asynccontextmanager
    async def _place(self, meter: ProgressMeter) -> AsyncIterator[None]:
        """Hold one of the places. The meter leaves out the wait for it."""
        asked_at = time.monotonic()
        async with self._places:
            meter.waited(time.monotonic() - asked_at)
            yield

    @contextlib.asynccontextmanager
    async def _kept(self, attempt_id: str) -> AsyncIterator[None]:
        """Keep the attempt's scratch from being swept; a job may wait hours for its place."""

        async def keep() -> None:
            while True:
                await asyncio.sleep(self._pauses.keep_s)
                await self._tell_stages("keep", attempt_id)

        keeper = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeper.cancel()

    async def _fetch(self, attempt: Attempt) -> Measured[Digests]:
        fetched: Measured[Digests] = await self._call(
            lambda: [self._graph.preprocessor.fetch.remote(attempt)],
            self._open_timeout_s + self._settings.call_timeout_s,
            Stage.DOWNLOAD,
        )
        return fetched

    async def _open(self, attempt: Attempt, fetched: Measured[Digests]) -> Measured[Opened]:
        opened: Measured[Opened] = await self._call(
            lambda: [self._graph.preprocessor.open.remote(attempt, fetched)],
            # A node that does not have the files yet fetches them.
            self._open_timeout_s + self._settings.call_timeout_s,
            Stage.VALIDATION,
        )
        return opened

    async def _compose_all(self, opened: Opened, meter: ProgressMeter) -> list[Any]:
        """Return the responses that hold the encoded pieces, in order."""
        plan = opened.job.plan
        window = asyncio.Semaphore(self._settings.window_segments)
        pieces: list[Any] = [None] * len(plan.segments)
        faces = 0
        async with watch_results() as results:

            def encode(block: Block) -> CachedBlock:
                encoding = self._encode(opened, block)
                results.watch(encoding.prepared, lambda: meter.prepared(block.index))
                return encoding

            async def one(segment: Segment) -> None:
                nonlocal faces
                try:
                    response, piece = await self._segment(opened, segment, blocks, meter, results)
                finally:
                    window.release()
                pieces[segment.index] = response
                faces += piece.value.frames_with_face
                meter.composed(segment, piece)
                costs = [str(cost) for cost in piece.costs]
                logger.debug("segment composed", extra={"segment": segment.index, "costs": costs})

            blocks = BlockCache(plan, encode, self._settings)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for segment in plan.segments:
                        await window.acquire()
                        tasks.create_task(one(segment))
            except BaseExceptionGroup as group:
                # The first failure cancelled the other segments; it alone is worth reporting.
                raise first_error(group) from None
            finally:
                blocks.close()
        require_face(faces, plan)
        return pieces

    async def _segment(
        self,
        opened: Opened,
        segment: Segment,
        blocks: BlockCache,
        meter: ProgressMeter,
        results: ResultWatch,
    ) -> tuple[Any, Measured[Piece]]:
        """Compose one segment; return the response, which is passed on, and its value."""
        block: CachedBlock | None = None
        submitted_at = 0.0

        def chain() -> list[Any]:
            nonlocal block, submitted_at
            if block is not None:
                blocks.discard(block)  # it may be the cause of the failure, so it is encoded again
                meter.lost(segment, block.pool.name, time.monotonic() - submitted_at)
            block = acquired = blocks.acquire(segment.block)
            submitted_at = time.monotonic()
            responses = self._submit(opened, segment, acquired)

            def is_drawn() -> None:
                if acquired is block:  # else it failed, and another try is on its way
                    meter.drawn(segment)

            results.watch(responses[1], is_drawn)
            return responses

        self._segments_in_flight += 1
        try:
            kept: list[Any] = []
            segment_s = len(segment) * self._frame_s
            # Calls queue behind those of other jobs, so the time allowed grows with their number.
            timeout_s = self._settings.call_timeout_s + segment_s * self._segments_in_flight
            piece = await self._call(chain, timeout_s, Stage.INFERENCE, kept)
            return kept[-1], piece
        finally:
            self._segments_in_flight -= 1
            if block is not None:
                blocks.release(block)

    def _submit(self, opened: Opened, segment: Segment, block: CachedBlock) -> list[Any]:
        """Submit the calls of one segment; return their responses in order."""
        graph, options = self._graph, opened.job.options.speech
        speech = graph.preprocessor.encode_audio.remote(opened, segment)
        drawn = block.pool.handle.generate.remote(block.avatar, speech, segment, options)
        return [speech, drawn, graph.finisher.compose.remote(opened, block.avatar, drawn)]

    def _encode(self, opened: Opened, block: Block) -> CachedBlock:
        """Submit the calls that prepare and encode a block."""
        pool = self._graph.pick_pool()
        prepared = self._graph.preprocessor.prepare.remote(opened, block)
        avatar = pool.handle.encode.remote(prepared, opened.job.options.mask)
        return CachedBlock(block.index, pool, prepared, avatar)

    async def _finish(self, opened: Opened, pieces: list[Any], meter: ProgressMeter) -> Finished:
        facts, about = meter.facts(self._prices()), self._describe()
        finished: Finished = await self._call(
            lambda: [self._graph.finisher.finish.remote(opened, facts, about, *pieces)],
            self._settings.finish_timeout_s,
            Stage.UPLOAD,
        )
        return finished

    async def _call(
        self,
        submit: Callable[[], list[Any]],
        timeout_s: float,
        stage: Stage,
        kept: list[Any] | None = None,
    ) -> Any:
        """Await the last response that `submit` returns; submit again if a replica is at fault.

        `kept` receives the responses that succeeded.
        """
        for attempt in range(1, self._settings.tries + 1):
            responses = submit()
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
                    "call failed, trying again",
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
            pauses = self._pauses.retry_s
            await asyncio.sleep(pauses[min(attempt, len(pauses)) - 1])
        raise AssertionError("unreachable: the last try returns or raises")

    async def _release(self, attempt_id: str) -> None:
        """Remove the attempt's scratch. The janitors of the stages remove what this misses."""
        await self._tell_stages("release", attempt_id)

    async def _tell_stages(self, method: str, attempt_id: str) -> None:
        """Call a method of both stages that keep scratch. A call that fails is only logged."""
        for stage in (self._graph.preprocessor, self._graph.finisher):
            try:
                async with asyncio.timeout(self._pauses.tell_s):
                    await getattr(stage, method).remote(attempt_id)
            except BaseException as exc:  # Ray raises anything for a call that cannot be sent
                if not isinstance(exc, Exception) and not is_of_ray(exc):
                    raise
                extra = {"attempt": attempt_id, "call": method, "error": type(exc).__name__}
                logger.warning("a call about an attempt's scratch failed", extra=extra)
