"""What a job consists of: which output frame shows which source frame, cut into blocks and
segments.

Pure arithmetic; imports neither torch nor av.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from musetalk_pipeline.options import FrameRate

SAMPLE_RATE = 16_000  # Hz; Whisper's, and so the clock of every count below
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
class Segment:
    """A run of consecutive output frames, `[start, end)`, that draws on one block forwards or
    backwards.

    Output frame `start + j` shows source frame `first_source + j * step`. If the whole source is
    one block of `turns` frames, a segment goes back and forth in it instead. `index`: its place in
    the plan, which the parts of a segment that is cut share.
    """

    index: int
    start: int
    end: int
    block: int
    first_source: int
    step: int  # +1 forwards, -1 on the way back
    turns: int | None = None

    def __len__(self) -> int:
        return self.end - self.start

    def source_frames(self) -> list[int]:
        """Source frame of each output frame, in output order."""
        if self.turns is not None:
            return [source_of(frame, self.turns) for frame in range(self.start, self.end)]
        return [self.first_source + j * self.step for j in range(len(self))]


@dataclass(frozen=True, slots=True)
class FramePlan:
    """All blocks and segments of one job. Segments cover every output frame once, in order."""

    n_output: int
    fps: Fraction
    blocks: tuple[Block, ...]
    segments: tuple[Segment, ...]

    def played_once(self) -> FramePlan:
        """Return the plan of a job that shows the reached frames once, forwards."""
        segments = tuple(
            Segment(block.index, block.start, block.end, block.index, block.start, 1)
            for block in self.blocks
        )
        return FramePlan(self.blocks[-1].end, self.fps, self.blocks, segments)

    def seen(self, block: Block, reach: int) -> tuple[int, int]:
        """Return the source frames `[start, end)` that the faces of a block depend on, if each box
        is averaged over `reach` neighbours on each side.
        """
        return max(0, block.start - reach), min(self.blocks[-1].end, block.end + reach)


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
    """Cut the source into blocks and the output into segments.

    Only blocks that the output reaches are listed, and only as far as it reaches. A segment ends
    where its block ends or where the ping-pong order turns, so the run within one segment has one
    direction. A source shorter than a block would give a segment per turn, in the extreme one per
    frame; its segments go on through the turns and are as long as a block may be.
    """
    if n_source < 1 or n_output < 1:
        raise ValueError(f"nothing to plan: {n_source} source and {n_output} output frames")
    size = max(1, round(block_s * float(fps)))
    reached = min(n_source, n_output)
    blocks = tuple(
        Block(index, start, min(start + size, reached))
        for index, start in enumerate(range(0, reached, size))
    )
    if n_source < min(size, n_output):
        segments = _turning_segments(n_source, n_output, size)
    else:
        segments = _segments(n_source, n_output, blocks)
    return FramePlan(n_output, fps, blocks, tuple(segments))


def cut_segment(segment: Segment, frames: int) -> tuple[Segment, Segment]:
    """Cut a segment after so many of its frames. Both parts show what they showed before."""
    if not 0 < frames < len(segment):
        raise ValueError(f"{frames} frames of a segment of {len(segment)} are not a part of it")
    at = segment.start + frames
    if segment.turns is None:
        first_source = segment.first_source + frames * segment.step
    else:
        first_source = source_of(at, segment.turns)
    return replace(segment, end=at), replace(segment, start=at, first_source=first_source)


def _turning_segments(n_source: int, n_output: int, size: int) -> list[Segment]:
    return [
        Segment(index, at, min(at + size, n_output), 0, source_of(at, n_source), 1, n_source)
        for index, at in enumerate(range(0, n_output, size))
    ]


def _segments(n_source: int, n_output: int, blocks: tuple[Block, ...]) -> list[Segment]:
    size = len(blocks[0])
    segments: list[Segment] = []
    start = 0
    while start < n_output:
        first = source_of(start, n_source)
        forwards = start % (2 * n_source) < n_source
        block = blocks[first // size]
        run = block.end - first if forwards else first - block.start + 1
        end = min(start + run, n_output)
        segments.append(
            Segment(len(segments), start, end, block.index, first, 1 if forwards else -1)
        )
        start = end
    return segments
