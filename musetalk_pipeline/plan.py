"""What a job consists of: which output frame shows which source frame, cut into blocks and
segments.

Pure arithmetic; imports neither torch nor av.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from musetalk_pipeline.options import FrameRate

SAMPLE_RATE = 16_000  # Hz; Whisper's, and so the clock of every count below
MIN_SAMPLES = SAMPLE_RATE * 80 // 1000  # below 80 ms the reference dies (docs/reference.md Q9)
# Guess: long enough to amortise a seek and a batch, short enough for a window of three.
BLOCK_S = 2.0


@dataclass(frozen=True, slots=True)
class Block:
    """A run of consecutive source frames, `[start, end)`, prepared together."""

    index: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class FrameOrder:
    """Which frame of the source, of `[first, end)`, each of `n_output` output frames shows.

    `bounce` shows them forwards and backwards in turn, both ends twice; `loop` begins again with
    the first; `stretch` shows them once, more slowly or faster, and repeats or leaves out frames.
    """

    way: Literal["bounce", "loop", "stretch"]
    first: int
    end: int
    n_output: int

    def __len__(self) -> int:
        """Return how many source frames there are to show."""
        return self.end - self.first

    def source_of(self, frame: int) -> int:
        """Return the source frame that an output frame shows."""
        if self.way == "stretch":
            return self.first + frame * len(self) // self.n_output
        if self.way == "loop":
            return self.first + frame % len(self)
        return self.first + source_of(frame, len(self))

    def reached(self) -> range:
        """Return the source frames from the first to the last one that are shown."""
        if self.way == "stretch":
            return range(self.first, self.source_of(self.n_output - 1) + 1)
        return range(self.first, min(self.end, self.first + self.n_output))

    def is_backwards(self, frame: int) -> bool:
        """Return whether the order is on its way back at an output frame."""
        return self.way == "bounce" and frame % (2 * len(self)) >= len(self)

    def end_of_run(self, frame: int, block: Block) -> int:
        """Return the first output frame after `frame` that turns, begins again or leaves `block`,
        or where the output ends.
        """
        if self.way == "stretch":
            # The first frame with first + frame * len // n_output >= block.end.
            end = -(-(block.end - self.first) * self.n_output // len(self))
            return min(end, self.n_output)
        shown = self.source_of(frame)
        left = shown - block.start + 1 if self.is_backwards(frame) else block.end - shown
        turn = (frame // len(self) + 1) * len(self)
        return min(frame + left, turn, self.n_output)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of consecutive output frames, `[start, end)`, that draws on one block forwards or
    backwards; or on none (`block`: None), if its frames are shown as they are.

    Output frame `start + j` shows source frame `first_source + j * step`, unless the segment has an
    `order` of its own: that of a source that is shorter than a block, in which it goes on through
    the turns, or one that repeats or leaves out frames. `index`: its place in the plan, which the
    parts of a segment that is cut share.
    """

    index: int
    start: int
    end: int
    block: int | None
    first_source: int
    step: int  # +1 forwards, -1 on the way back
    order: FrameOrder | None = None

    def __len__(self) -> int:
        return self.end - self.start

    def source_frames(self) -> list[int]:
        """Source frame of each output frame, in output order."""
        if self.order is not None:
            return [self.order.source_of(frame) for frame in range(self.start, self.end)]
        return [self.first_source + j * self.step for j in range(len(self))]


@dataclass(frozen=True, slots=True)
class FramePlan:
    """All blocks and segments of one job. Segments cover every output frame once, in order."""

    n_output: int
    fps: Fraction
    blocks: tuple[Block, ...]
    segments: tuple[Segment, ...]

    @property
    def n_drawn(self) -> int:
        """How many output frames draw on a block."""
        return sum(len(segment) for segment in self.segments if segment.block is not None)

    def uses(self) -> Counter[int]:
        """Return how many segments draw on each block."""
        blocks = (segment.block for segment in self.segments)
        return Counter(block for block in blocks if block is not None)

    @property
    def prepared(self) -> list[int]:
        """The source frames of all blocks, in order."""
        return [frame for block in self.blocks for frame in range(block.start, block.end)]

    def source_of(self, frame: int) -> int:
        """Return the source frame that an output frame shows."""
        segment = next(one for one in self.segments if one.start <= frame < one.end)
        return segment.source_frames()[frame - segment.start]

    def played_once(self) -> FramePlan:
        """Return the plan of a job that shows the frames of all blocks once, forwards."""
        first = self.blocks[0].start
        segments = tuple(
            Segment(
                *(block.index, block.start - first, block.end - first),
                *(block.index, block.start, 1),
            )
            for block in self.blocks
        )
        return FramePlan(self.blocks[-1].end - first, self.fps, self.blocks, segments)

    def seen(self, block: Block, reach: int) -> tuple[int, int]:
        """Return the source frames `[start, end)` that the faces of a block depend on, if each box
        is averaged over `reach` neighbours on each side.
        """
        first, end = self.blocks[0].start, self.blocks[-1].end
        return max(first, block.start - reach), min(end, block.end + reach)


def playing_fps(source_fps: Fraction, wanted: float | None) -> Fraction:
    """Return the rate that the source's frames are played at: `wanted` if it is given.

    Denominators up to 1001, so that 29.97003 is broadcasting's 30000/1001.
    """
    return source_fps if wanted is None else Fraction(wanted).limit_denominator(1001)


def speech_fps(fps: Fraction, frame_rate: FrameRate) -> Fraction:
    """Return the rate at which frames follow each other in the sound of a video that plays at
    `fps`.

    `whole` cuts it to an integer as the reference does (Q7). A rate below 1, of which nothing would
    be left, stays as it is.
    """
    return fps if frame_rate == "exact" or fps < 1 else Fraction(math.floor(fps))


def count_output_frames(n_samples: int, fps: Fraction) -> int:
    """Return how many whole frames `n_samples` of 16 kHz audio cover, as the reference counts.

    `floor(n / 16000 * fps)` in double precision and in that order: 1.16 s at 25 fps is 28.999… and
    so 28 (docs/reference.md §1.5). `fps`: `speech_fps`, exact by default, so that 29.97 fps
    video is as long as its audio.
    """
    return math.floor(n_samples / SAMPLE_RATE * float(fps))


def source_of(output_frame: int, n_source: int) -> int:
    """Return the source frame that `output_frame` shows: 0..N-1, N-1..0, …, both ends twice."""
    place = output_frame % (2 * n_source)
    return place if place < n_source else 2 * n_source - 1 - place


def plan_frames(n_source: int, n_output: int, fps: Fraction, block_s: float = BLOCK_S) -> FramePlan:
    """Plan a job that shows the whole source forwards and backwards; see `plan_order`."""
    return plan_order(FrameOrder("bounce", 0, n_source, n_output), fps, block_s)


def plan_order(
    order: FrameOrder,
    fps: Fraction,
    block_s: float = BLOCK_S,
    drawn: Sequence[range] | None = None,
) -> FramePlan:
    """Cut the source into blocks and the output into segments.

    `drawn`: the only output frames that draw on blocks, in order, of an order that shows every
    frame once; None: all draw.

    Only blocks that the output reaches are listed, and only as far as it reaches. They begin at the
    same source frames whichever part of the video is used, so that jobs can share them. A segment
    ends where its block ends or where the order turns, so the run within one segment has one
    direction. A source shorter than a block would give a segment per turn, in the extreme one per
    frame; its segments go on through the turns and are as long as a block may be.
    """
    if len(order) < 1 or order.n_output < 1:
        raise ValueError(f"nothing to plan: {len(order)} source and {order.n_output} output frames")
    size = max(1, round(block_s * float(fps)))
    if drawn is not None:
        return _plan_spans(order, fps, size, drawn)
    if order.way != "stretch" and len(order) < min(size, order.n_output):
        blocks: tuple[Block, ...] = (Block(0, order.first, order.end),)
        segments = _turning_segments(order, size)
    else:
        blocks = _blocks(order.reached(), size)
        segments = _segments(order, blocks, size)
    return FramePlan(order.n_output, fps, blocks, tuple(segments))


def _plan_spans(order: FrameOrder, fps: Fraction, size: int, drawn: Sequence[range]) -> FramePlan:
    """Cut the drawn spans into blocks, each with one segment, and what lies between them too."""
    blocks: list[Block] = []
    segments: list[Segment] = []
    at = 0

    def add(frames: range, *, is_drawn: bool) -> None:
        shown = range(order.first + frames.start, order.first + frames.stop)
        for run in _runs(shown, size):
            block = Block(len(blocks), run.start, run.stop) if is_drawn else None
            blocks.extend([block] if block else [])
            start, end = run.start - order.first, run.stop - order.first
            index = None if block is None else block.index
            segments.append(Segment(len(segments), start, end, index, run.start, 1))

    for span in drawn:
        add(range(at, span.start), is_drawn=False)
        add(span, is_drawn=True)
        at = span.stop
    add(range(at, order.n_output), is_drawn=False)
    return FramePlan(order.n_output, fps, tuple(blocks), tuple(segments))


def cut_segment(segment: Segment, frames: int) -> tuple[Segment, Segment]:
    """Cut a segment after so many of its frames. Both parts show what they showed before."""
    if not 0 < frames < len(segment):
        raise ValueError(f"{frames} frames of a segment of {len(segment)} are not a part of it")
    at = segment.start + frames
    first_source = segment.source_frames()[frames]
    return replace(segment, end=at), replace(segment, start=at, first_source=first_source)


def _blocks(frames: range, size: int) -> tuple[Block, ...]:
    return tuple(Block(index, run.start, run.stop) for index, run in enumerate(_runs(frames, size)))


def _runs(frames: range, size: int) -> Iterator[range]:
    """Cut consecutive source frames at the multiples of `size`."""
    first, end = frames.start, frames.stop
    edges = [first, *range((first // size + 1) * size, end, size), end]
    yield from (range(*edge) for edge in pairwise(edges) if edge[0] < edge[1])


def _turning_segments(order: FrameOrder, size: int) -> list[Segment]:
    return [
        Segment(index, at, min(at + size, order.n_output), 0, order.source_of(at), 1, order)
        for index, at in enumerate(range(0, order.n_output, size))
    ]


def _segments(order: FrameOrder, blocks: tuple[Block, ...], size: int) -> list[Segment]:
    own_order = order if order.way == "stretch" else None
    before = blocks[0].start // size  # blocks of the source before the first one here
    segments: list[Segment] = []
    start = 0
    while start < order.n_output:
        shown = order.source_of(start)
        block = blocks[shown // size - before]
        # A video that plays slowly stays in a block for longer than that lasts.
        end = min(order.end_of_run(start, block), start + size)
        step = -1 if order.is_backwards(start) else 1
        segments.append(Segment(len(segments), start, end, block.index, shown, step, own_order))
        start = end
    return segments
