"""The segments of one job, from prepared blocks to encoded pieces.

    a place among the segments in flight
      prepare ─► turn ─► encode ─┐  once for each block, unless it is kept (kept_blocks.py)
      encode_audio ──────────────┴► turn ─► generate ─► compose ─► a file at the ingress

A call is sent when its inputs exist, and to a Generator when the scheduler has a free replica for
it. A segment whose call fails for a reason that may pass is made again, its block too, if possible
in another pool.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from musetalk_pipeline.artifacts import Piece
from musetalk_pipeline.cost import Measured, StageCost
from musetalk_pipeline.errors import Stage
from musetalk_pipeline.plan import Block, Segment, cut_segment
from musetalk_pipeline.stages import require_face
from serve_app.config.settings import DriverSettings
from serve_app.graph.block_cache import BlockCache, BlockRequest, EncodedBlock
from serve_app.graph.capacity import SharedCapacity
from serve_app.graph.kept_blocks import LOAD_S, STORE_S, BlocksInMaking, JobAvatar
from serve_app.graph.pieces import PieceFiles
from serve_app.graph.pools import Graph
from serve_app.graph.progress import ProgressMeter
from serve_app.graph.ray_errors import first_error
from serve_app.graph.segment_try import SegmentTry, pools_of, timed
from serve_app.graph.stage_calls import PoolLost, StageCalls
from serve_app.graph.transfers import Opened
from serve_app.scheduling.pool_state import Kind
from serve_app.scheduling.tail import part_frames

logger = logging.getLogger(__name__)

# The first piece of a job that is alone. Drawing and encoding 12 frames instead of 50 takes a
# quarter of the time, and the file grows by 33 kB at 720p, which is one more key frame.
FIRST_S = 0.5


@dataclass(frozen=True, slots=True)
class SegmentMakers:
    """What makes the segments of every job of an ingress."""

    graph: Graph
    settings: DriverSettings
    capacity: SharedCapacity
    calls: StageCalls
    pieces: PieceFiles
    in_making: BlocksInMaking = field(default_factory=BlocksInMaking)


class JobSegments:
    """Makes all segments of one job."""

    def __init__(
        self,
        makers: SegmentMakers,
        opened: Opened,
        meter: ProgressMeter,
        on_piece: Callable[[Segment, Path], None] | None = None,
    ) -> None:
        """`on_piece`: called with each segment and the file of its piece, in any order. None if
        nobody can watch the job.
        """
        self._on_piece = on_piece
        self._makers = makers
        self._graph, self._calls = makers.graph, makers.calls
        self._capacity, self._scheduler = makers.capacity, makers.capacity.scheduler
        self._opened, self._meter = opened, meter
        self._plan = opened.job.plan
        self._frame_bytes = self._capacity.frame_bytes(opened.job)
        self._job_id = opened.attempt.attempt_id  # two attempts at a job may overlap
        self._avatar = JobAvatar(opened, makers.in_making, self._load_block, self._store_block)
        self._blocks = BlockCache(self._plan, self._encode_block, makers.settings.kept_blocks)
        self._pieces: dict[int, Path] = {}  # by their first frame
        self._faces = 0

    async def make_all(self) -> list[Path]:
        """Return the files of the encoded pieces, in order.

        Raises:
            PipelineError: a segment cannot be made, or no frame has a face.
        """
        plan = self._plan
        to_encode = sum(len(block) for block in plan.blocks if not self._avatar.has(block))
        weight = self._capacity.weight_of(self._opened.attempt.origin)
        try:
            frames = to_encode, plan.n_drawn
            with self._scheduler.working_on(self._job_id, *frames, weight=weight):
                async with asyncio.TaskGroup() as tasks:
                    async for segment in self._admitted():
                        # Not in the task, because one that is cancelled early never begins.
                        making = tasks.create_task(self._make_either(segment))
                        making.add_done_callback(partial(self._leave, segment))
        except BaseExceptionGroup as group:
            # The first failure cancelled the other segments; it alone is worth reporting.
            raise first_error(group) from None
        finally:
            await self._blocks.close()
            self._capacity.forget(self._job_id)
        require_face(self._faces, plan)
        return [path for _, path in sorted(self._pieces.items())]

    async def make_avatar(self) -> int:
        """Make all blocks of a job that has no sound; return how many of them are kept.

        Raises:
            PipelineError: a block cannot be made.
        """
        plan, kept = self._plan, 0

        async def one(segment: Segment) -> None:
            nonlocal kept
            is_kept = await self._calls.repeated(
                lambda: self._kept_block(segment), Stage.PREPROCESSING
            )
            kept += is_kept

        to_encode = sum(len(block) for block in plan.blocks if not self._avatar.has(block))
        try:
            with self._scheduler.working_on(self._job_id, to_encode, 0):
                async with asyncio.TaskGroup() as tasks:
                    for segment in plan.segments:
                        await self._enter(segment)
                        making = tasks.create_task(one(segment))
                        making.add_done_callback(partial(self._leave, segment))
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            await self._blocks.close()
            self._capacity.forget(self._job_id)
        return kept

    async def _kept_block(self, segment: Segment) -> bool:
        """Make the block of a segment, unless it is kept; return whether it is kept then."""
        assert segment.block is not None, "an avatar consists of blocks"
        block = self._blocks.acquire(segment.block)
        try:
            encoded = await block.encoded()
            is_kept = await self._avatar.settled(block.request.block)
            if not is_kept:  # if it could not be made, this raises the reason
                await self._calls.result(encoded.avatar, LOAD_S)
        except BaseException:
            self._blocks.discard(block)
            raise
        self._blocks.release(block)
        self._meter.drawn(segment)
        return is_kept

    async def _admitted(self) -> AsyncIterator[Segment]:
        """Yield segments, cut finer towards the end, when each has its place."""
        gate, rest = self._capacity.segments, deque(self._plan.segments)
        while rest:
            segment = rest.popleft()
            await self._enter(segment)
            frames = self._frames_of_part(segment)
            if frames < len(segment):  # its place was taken for the whole segment
                gate.resize(len(segment) * self._frame_bytes, frames * self._frame_bytes)
                segment, left = cut_segment(segment, frames)
                rest.appendleft(left)
                if left.block is not None:
                    self._blocks.expect_another(left.block)
            yield segment

    def _frames_of_part(self, segment: Segment) -> int:
        """Return how many frames to make as one segment, from its start."""
        # Work of other jobs keeps all replicas busy.
        if self._capacity.segments.others_wait(self._job_id):
            return len(segment)
        if segment.block is None:  # there is nothing to draw
            return len(segment)
        if segment.start == 0:
            return self._frames_of_first(segment)
        left = self._plan.n_output - segment.start
        scheduler = self._scheduler
        return part_frames(len(segment), left, scheduler.running, scheduler.mean_speed())

    def _frames_of_first(self, segment: Segment) -> int:
        """Return how long the first piece is made: shorter than the segment if it can be watched
        while more are made.
        """
        if self._on_piece is None or len(segment) == self._plan.n_output:
            return len(segment)
        return min(len(segment), max(1, round(FIRST_S * self._plan.fps)))

    async def _enter(self, segment: Segment) -> None:
        size = len(segment) * self._frame_bytes
        await self._capacity.segments.enter(self._job_id, len(segment), size)

    def _leave(self, segment: Segment, _: "asyncio.Task[None]") -> None:
        self._capacity.segments.leave(self._job_id, len(segment) * self._frame_bytes)

    async def _make_either(self, segment: Segment) -> None:
        """Make one segment, in several tries if necessary."""
        if segment.block is None:
            await self._calls.repeated(lambda: self._pass_on(segment), Stage.POSTPROCESSING)
        else:
            await self._make(segment, segment.block)

    async def _pass_on(self, segment: Segment) -> None:
        """Encode a segment in which nothing is drawn."""
        frames, pace = len(segment), self._capacity.compose_pace
        async with self._capacity.compose.turn(self._job_id, frames):
            piece: Measured[Piece] = await self._calls.result(
                self._graph.finisher.compose_source.remote(self._opened, segment),
                self._calls.deadline_s(frames, pace.expected_s(frames)),
            )
        await self._keep(segment, piece)

    async def _make(self, segment: Segment, index: int) -> None:
        avoid: frozenset[str] = frozenset()
        failures = 0
        while True:
            is_first = segment.start == 0
            block = self._blocks.acquire(index, is_first=is_first, avoid=avoid)
            attempt = SegmentTry(segment, block, avoid, is_first)
            try:
                await self._try(attempt)
            except PoolLost:  # this ends: a pool can be lost only after it has run again
                self._give_back(attempt)
                avoid |= pools_of(attempt)
            except BaseException as exc:
                self._give_back(attempt)
                failures += 1
                self._calls.error_of(exc, Stage.INFERENCE, failures)
                avoid |= pools_of(attempt)
                if not (avoid and self._scheduler.runs_elsewhere(avoid)):
                    await asyncio.sleep(self._calls.pauses.before(failures))
            else:
                self._blocks.release(block)
                return

    def _give_back(self, attempt: SegmentTry) -> None:
        """Drop a block that may be the cause of the failure, so that it is encoded again."""
        self._blocks.discard(attempt.block)
        self._meter.lost(attempt.segment, attempt.held_in_vain())

    async def _try(self, attempt: SegmentTry) -> None:
        segment = attempt.segment
        listening = asyncio.create_task(self._encode_audio(segment))
        try:
            block = await attempt.block.encoded()
            speech = await listening
        except BaseException:
            await _abandon(listening)
            raise
        drawn = await self._draw(attempt, block, speech)
        self._meter.drawn(segment)
        piece = await self._compose(segment, block, drawn)
        self._count(attempt, block, piece)
        await self._keep(segment, piece)

    async def _keep(self, segment: Segment, piece: Measured[Piece]) -> None:
        """Write a piece to a file here."""
        path = await self._makers.pieces.keep(self._opened.attempt.attempt_id, piece.value)
        self._pieces[segment.start] = path
        if self._on_piece is not None:
            self._on_piece(segment, path)
        self._faces += piece.value.frames_with_face
        self._meter.composed(segment, piece)
        costs = [str(cost) for cost in piece.costs]
        extra = {"segment": segment.index, "frame": segment.start, "costs": costs}
        logger.debug("segment composed", extra=extra)

    async def _encode_block(self, request: BlockRequest) -> EncodedBlock:
        """Load a block that is kept, or make it and keep it."""
        block = request.block
        kept = await self._avatar.find(block)
        if kept is not None:
            self._meter.prepared(block.index)
            return EncodedBlock(kept, None)
        async with self._avatar.making(block) as keep:
            encoded = await self._make_block(request)
            keep(encoded.avatar)
            return encoded

    async def _load_block(self, block: Block) -> Any:
        loading = self._graph.preprocessor.load_avatar.remote(self._opened, block)
        return await self._calls.result(loading, LOAD_S)

    async def _store_block(self, avatar: Any) -> bool:
        storing = self._graph.preprocessor.store_avatar.remote(self._opened, avatar)
        is_kept: bool = await self._calls.result(storing, STORE_S, (avatar,))
        return is_kept

    async def _make_block(self, request: BlockRequest) -> EncodedBlock:
        """Prepare and encode a block."""
        block, calls, capacity = request.block, self._calls, self._capacity
        frames = len(block)
        async with capacity.prepare.turn(self._job_id, frames):
            prepared = await calls.existing(
                self._graph.preprocessor.prepare.remote(self._opened, block),
                calls.deadline_s(frames, capacity.prepare_pace.expected_s(frames)),
            )
        self._meter.prepared(block.index)
        async with self._scheduler.turn(
            self._job_id,
            frames,
            Kind.ENCODE,
            avoid=request.avoid,
            is_first=request.is_first,
        ) as grant:
            request.pool = grant.pool
            self._meter.queued(grant.waited_s)
            expected_s = self._scheduler.expected_s(grant.pool, Kind.ENCODE, frames)
            with timed(request):
                avatar = await calls.existing(
                    self._graph.generator(grant.pool).encode.remote(
                        prepared, self._opened.job.options.mask
                    ),
                    calls.deadline_s(frames, expected_s),
                    grant.lost,
                    inputs=(prepared,),
                )
        return EncodedBlock(avatar, grant.pool)

    async def _encode_audio(self, segment: Segment) -> Any:
        """Return the response that holds what is spoken during the segment."""
        frames, pace = len(segment), self._capacity.listen_pace
        # One frame, as this costs little beside preparing the segment's block.
        async with self._capacity.prepare.turn(self._job_id, 1):
            return await self._calls.existing(
                self._graph.preprocessor.encode_audio.remote(self._opened, segment),
                self._calls.deadline_s(frames, pace.expected_s(frames)),
            )

    async def _draw(self, attempt: SegmentTry, block: EncodedBlock, speech: Any) -> Any:
        """Return the response that holds the faces of the segment."""
        segment, frames = attempt.segment, len(attempt.segment)
        options = self._opened.job.options.speech
        async with self._scheduler.turn(
            self._job_id,
            frames,
            Kind.GENERATE,
            avoid=attempt.avoid,
            prefer=block.pool,
            is_first=attempt.is_first,
        ) as grant:
            attempt.drawn_in = grant.pool
            self._meter.queued(grant.waited_s)
            expected_s = self._scheduler.expected_s(grant.pool, Kind.GENERATE, frames)
            with timed(attempt):
                return await self._calls.existing(
                    self._graph.generator(grant.pool).generate.remote(
                        block.avatar, speech, segment, options
                    ),
                    self._calls.deadline_s(frames, expected_s),
                    grant.lost,
                    inputs=(block.avatar, speech),
                )

    async def _compose(self, segment: Segment, block: EncodedBlock, drawn: Any) -> Measured[Piece]:
        frames, pace = len(segment), self._capacity.compose_pace
        async with self._capacity.compose.turn(self._job_id, frames):
            piece: Measured[Piece] = await self._calls.result(
                self._graph.finisher.compose.remote(self._opened, block.avatar, drawn),
                self._calls.deadline_s(frames, pace.expected_s(frames)),
                (block.avatar, drawn),
            )
            return piece

    def _count(self, attempt: SegmentTry, block: EncodedBlock, piece: Measured[Piece]) -> None:
        """Learn from the costs of a piece how fast each stage is."""
        capacity = self._capacity
        costs: dict[str, StageCost] = {cost.stage: cost for cost in piece.costs}
        for stage, pace in (("listen", capacity.listen_pace), ("compose", capacity.compose_pace)):
            pace.measured(costs[stage].frames, costs[stage].seconds)
        assert attempt.drawn_in is not None
        drawing = costs["generate"]
        self._scheduler.measured(attempt.drawn_in, Kind.GENERATE, drawing.frames, drawing.seconds)
        if block.pool is None or block.is_counted:
            return
        block.is_counted = attempt.block.request.is_paid = True  # several segments draw on it
        prepared, encoded = costs["prepare"], costs["encode"]
        capacity.prepare_pace.measured(prepared.frames, prepared.seconds)
        self._scheduler.measured(block.pool, Kind.ENCODE, encoded.frames, encoded.seconds)


async def _abandon(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
