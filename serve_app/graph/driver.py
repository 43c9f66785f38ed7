"""One job, driven through the graph by the ingress.

    fetch ─► a place ─► open ─► all segments (job_segments.py) ─► finish (stitch, upload)

More jobs are fetched than have a place, so a slow server delays its own job only.

Results pass from stage to stage by reference; only encoded pieces and costs pass through here.
Every call has a deadline. Whatever ends the job ends its outstanding calls too.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import Context
from dataclasses import replace
from pathlib import Path
from typing import Any

from musetalk_pipeline.cost import Measured
from musetalk_pipeline.errors import Stage, UploadFailed
from musetalk_pipeline.job_media import Digests
from musetalk_pipeline.measure import JobSize
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.receipts.receipt import NO_PRICES, Prices
from serve_app.contract.outcomes import Phase, Progress
from serve_app.graph.job_segments import JobSegments, SegmentMakers
from serve_app.graph.job_stream import JobStreams, OnPiece
from serve_app.graph.left_nodes import LeftNodes
from serve_app.graph.progress import ProgressMeter
from serve_app.graph.ray_errors import is_of_ray
from serve_app.graph.transfers import (
    Assignment,
    Attempt,
    Description,
    Finished,
    Opened,
    PreviewPicture,
)
from serve_app.scheduling.pool_state import Kind

logger = logging.getLogger(__name__)

PREVIEW_FRAMES = 9  # searched for a face at most, and one is drawn
# More time to open a job whose person has to be followed: an hour of 1080p at 25 frames/s took 15
# minutes on one core (from the speed of ten seconds of it).
FOLLOWING_S = 3600.0


class JobDriver:
    """Drives jobs; holds nothing of a job after `run` returns."""

    def __init__(
        self,
        makers: SegmentMakers,
        open_timeout_s: float,
        describe: Callable[[], Description],
        places: int,
        *,
        prices: Callable[[], Prices] = lambda: NO_PRICES,
        left_nodes: LeftNodes | None = None,
        expected_s: Callable[[Opened], float | None] = lambda opened: None,
        streams: JobStreams | None = None,
    ) -> None:
        """Make a driver that opens at most `places` jobs at once, and fetches more. `prices`: those
        of now, for receipts. `left_nodes`: None if there is one node. `expected_s`: how long an
        opened job will take; None if that is not known. `streams`: None if jobs are not streamed.
        """
        self._makers = makers
        self._graph, self._calls = makers.graph, makers.calls
        self._settings, self._pauses = makers.settings, makers.calls.pauses
        self._open_timeout_s = open_timeout_s
        self._describe = describe
        self._prices = prices
        self._left_nodes = left_nodes
        self._expected_s = expected_s
        self._streams = streams
        self._places = asyncio.Semaphore(places)  # first come, first served
        self._releasing: set[asyncio.Task[None]] = set()

    async def run(self, assignment: Assignment, report: Callable[[Progress], None]) -> Finished:
        """Do one job and return what became of it.

        Raises:
            PipelineError: the job cannot be done; `stage` names the stage that failed.
        """
        meter = ProgressMeter(report, expected_s=self._expected_s)
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
                    if attempt.is_avatar:
                        return await self._make_avatar(opened.value, meter)
                    return await self._make_video(assignment, opened.value, meter)
        except BaseException:
            meter.ended_early(self._prices())
            raise
        finally:
            await asyncio.shield(self._release(assignment.attempt_id))

    async def preview(self, assignment: Assignment, *, has_boxes: bool) -> PreviewPicture:
        """Make one composited frame of a job, to tune its options by.

        Raises:
            PipelineError: as `run`.
        """
        attempt = replace(Attempt.of(assignment), is_preview=True)
        options = assignment.options
        try:
            opened = await self._open(attempt, await self._fetch(attempt))
            picture: PreviewPicture = await self._calls.repeated(
                lambda: self._preview_once(opened.value, options, has_boxes), Stage.INFERENCE
            )
            return picture
        finally:
            await asyncio.shield(self._release(assignment.attempt_id))

    async def measure(self, assignment: Assignment) -> JobSize:
        """Return how large the output of a job will be. Its media are fetched and checked.

        Raises:
            PipelineError: as `run`.
        """
        attempt = Attempt.of(assignment)
        timeout_s = self._open_timeout_s + self._settings.call_timeout_s
        preprocessor = self._graph.preprocessor
        try:
            fetched = await self._fetch(attempt)
            size: JobSize = await self._calls.repeated(
                lambda: self._calls.result(
                    preprocessor.measure.remote(attempt, fetched), timeout_s
                ),
                Stage.VALIDATION,
            )
            return size
        finally:
            await asyncio.shield(self._release(assignment.attempt_id))

    async def _preview_once(
        self, opened: Opened, options: JobOptions, has_boxes: bool
    ) -> PreviewPicture:
        graph, calls = self._graph, self._calls
        timeout_s = calls.deadline_s(PREVIEW_FRAMES, None)
        frame = await calls.existing(
            graph.preprocessor.pick_preview_frame.remote(opened), timeout_s
        )
        attempt_id, scheduler = opened.attempt.attempt_id, self._makers.capacity.scheduler
        async with scheduler.turn(attempt_id, 1, Kind.GENERATE, is_first=True) as grant:
            drawing = graph.generator(grant.pool).draw_preview.remote(frame, options)
            drawn = await calls.existing(drawing, timeout_s, grant.lost, inputs=(frame,))
        composing = graph.finisher.compose_preview.remote(frame, drawn, options, has_boxes)
        picture: PreviewPicture = await calls.result(composing, timeout_s, (frame, drawn))
        return picture

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
                await self._makers.pieces.touch(attempt_id)
                await self._tell_stages("keep", attempt_id)

        if self._left_nodes is not None:
            self._left_nodes.begin(attempt_id)
        keeper = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeper.cancel()

    async def _fetch(self, attempt: Attempt) -> Measured[Digests]:
        timeout_s = self._open_timeout_s + self._settings.call_timeout_s
        fetched: Measured[Digests] = await self._calls.repeated(
            lambda: self._calls.result(self._graph.preprocessor.fetch.remote(attempt), timeout_s),
            Stage.DOWNLOAD,
        )
        return fetched

    async def _open(self, attempt: Attempt, fetched: Measured[Digests]) -> Measured[Opened]:
        # A node that does not have the files yet fetches them.
        timeout_s = self._open_timeout_s + self._settings.call_timeout_s
        if not isinstance(attempt.options.face.face, str):
            timeout_s += FOLLOWING_S
        preprocessor = self._graph.preprocessor
        opened: Measured[Opened] = await self._calls.repeated(
            lambda: self._calls.result(preprocessor.open.remote(attempt, fetched), timeout_s),
            Stage.VALIDATION,
        )
        return opened

    async def _make_video(
        self, assignment: Assignment, opened: Opened, meter: ProgressMeter
    ) -> Finished:
        """Make all segments, and the finished video of them."""
        async with self._streamed(opened, assignment.number) as on_piece:
            pieces = await JobSegments(self._makers, opened, meter, on_piece).make_all()
            meter.uploading()
            addressed = replace(opened.attempt, output=assignment.output())
            return await self._finish(replace(opened, attempt=addressed), pieces, meter)

    def _streamed(
        self, opened: Opened, number: int
    ) -> contextlib.AbstractAsyncContextManager[OnPiece | None]:
        if self._streams is None:
            return contextlib.nullcontext()
        return self._streams.of(opened, number)

    async def _make_avatar(self, opened: Opened, meter: ProgressMeter) -> Finished:
        kept = await JobSegments(self._makers, opened, meter).make_avatar()
        return await self._finish_avatar(opened, kept, meter)

    async def _finish(
        self, opened: Opened, paths: Sequence[Path], meter: ProgressMeter
    ) -> Finished:
        facts, about = meter.facts(self._prices()), self._describe()
        pieces = await self._makers.pieces.shared(paths)
        finisher, timeout_s = self._graph.finisher, self._settings.finish_timeout_s
        finished: Finished = await self._calls.repeated(
            lambda: self._calls.result(
                finisher.finish.remote(opened, facts, about, pieces), timeout_s
            ),
            Stage.UPLOAD,
        )
        return finished

    async def _finish_avatar(self, opened: Opened, kept: int, meter: ProgressMeter) -> Finished:
        """Keep the video too, and return what jobs can name the avatar by."""
        avatar, facts, blocks = opened.avatar, meter.facts(), len(opened.job.plan.blocks)
        if avatar is None or kept < blocks:
            raise UploadFailed(
                f"Only {kept} of {blocks} parts of the avatar could be kept.",
                hint="Look at the free space of avatars.folder, and at avatars.max_gb.",
            )
        is_kept = await self._calls.repeated(
            lambda: self._calls.result(
                self._graph.preprocessor.keep_video.remote(opened), self._settings.finish_timeout_s
            ),
            Stage.UPLOAD,
        )
        if not is_kept:
            raise UploadFailed(
                "The video of the avatar could not be kept.",
                hint="Look at the free space of avatars.folder, and at avatars.max_gb.",
            )
        metrics = {
            "avatar_id": avatar.avatar_id,
            "stage_times": dict(facts.work.stage_seconds),
            "total_time": round(facts.elapsed_s, 3),
        }
        return Finished(f"/v1/avatars/{avatar.avatar_id}", metrics, opened.job.warnings)

    async def _release(self, attempt_id: str) -> None:
        """Remove the attempt's scratch, later where a replica does not answer now. The janitors of
        the stages remove what this misses.
        """
        await self._makers.pieces.release(attempt_id)
        if not await self._release_stages(attempt_id):
            # Outside the context of the request that runs the job, which ends before.
            later = self._release_later(attempt_id)
            releasing = asyncio.create_task(later, context=Context())
            self._releasing.add(releasing)
            releasing.add_done_callback(self._releasing.discard)

    async def _release_later(self, attempt_id: str) -> None:
        """Remove the attempt's scratch when lost replicas have been replaced."""
        for pause_s in self._pauses.release_s:
            await asyncio.sleep(pause_s)
            if await self._release_stages(attempt_id):
                return
        if self._left_nodes is not None:
            self._left_nodes.end(attempt_id)

    async def _release_stages(self, attempt_id: str) -> bool:
        """Remove the attempt's scratch from the nodes that stages are on, or have been on.

        Return whether all replicas have answered.
        """
        told = await self._tell_stages("release", attempt_id)
        if self._left_nodes is not None:
            self._left_nodes.release(attempt_id)
            if told:
                self._left_nodes.end(attempt_id)
        return told

    async def _tell_stages(self, method: str, attempt_id: str) -> bool:
        """Call a method of every replica that keeps scratch, since each node has its own.

        Return whether all of them have answered.
        """
        stages = (self._graph.preprocessor, self._graph.finisher)
        told = await asyncio.gather(*(self._tell(stage, method, attempt_id) for stage in stages))
        return all(told)

    async def _tell(self, stage: Any, method: str, attempt_id: str) -> bool:
        """Call a method of all replicas of a stage. Calls that fail are only logged."""
        failed: list[object]
        try:
            async with asyncio.timeout(self._pauses.tell_s):
                answers = stage.broadcast(method, attempt_id)
                told = await answers.results_async(return_exceptions=True)
            failed = [answer for answer in told if isinstance(answer, BaseException)]
        except BaseException as exc:  # Ray raises anything for a call that cannot be sent
            if not isinstance(exc, Exception) and not is_of_ray(exc):
                raise
            failed = [exc]
        for error in failed:
            extra = {"attempt": attempt_id, "call": method, "error": type(error).__name__}
            logger.warning("a call about an attempt's scratch failed", extra=extra)
        return not failed
