"""Where one person is visible in a video: a small value that is made once for a job.

A track belongs to the source, not to the output picture: its boxes are in displayed source pixels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from musetalk_pipeline.boxes import Box

# A box is left out if it lies between its neighbours in time, to this share of its size (guess).
STRAIGHT = 0.04
MOST_SKIPPED = 32  # in a row; bounds the work for a face that does not move


@dataclass(frozen=True, slots=True)
class Span:
    """A run of source frames `[start, end)` in which the person is visible.

    `frames`, `boxes`: where the face is in some of the frames, in order; at least one. Between two
    of them it moves in a straight line.
    """

    start: int
    end: int
    frames: tuple[int, ...]
    boxes: tuple[Box, ...]

    def at(self, frame: int) -> Box:
        """Return where the face is in a frame of the span."""
        after = bisect_right(self.frames, frame)
        if after == 0 or after == len(self.frames):
            return self.boxes[min(after, len(self.frames) - 1)]
        return between(
            (self.frames[after - 1], self.boxes[after - 1]),
            (self.frames[after], self.boxes[after]),
            frame,
        )


@dataclass(frozen=True, slots=True)
class Track:
    """The spans in which one person is visible, in order, none overlapping another."""

    spans: tuple[Span, ...]

    def at(self, frame: int) -> Box | None:
        """Return where the face is in a source frame; None if the person is not visible there."""
        after = bisect_right(self.spans, frame, key=lambda span: span.start)
        span = self.spans[after - 1] if after else None
        return span.at(frame) if span is not None and frame < span.end else None

    def frames_within(self, start: int, end: int) -> int:
        """Return in how many of the source frames `[start, end)` the person is visible."""
        return sum(max(0, min(end, s.end) - max(start, s.start)) for s in self.spans)


def between(before: tuple[int, Box], after: tuple[int, Box], frame: int) -> Box:
    """Return the box on the straight line between two, at a frame in between."""
    (first, one), (last, other) = before, after
    share = (frame - first) / (last - first)
    sides = zip(_sides(one), _sides(other), strict=True)
    return Box(*(round(a + (b - a) * share) for a, b in sides))


def straightened(keys: Sequence[tuple[int, Box]]) -> list[tuple[int, Box]]:
    """Return so few of the keys that the others follow from them by straight lines, nearly."""
    kept = [0]
    for place in range(1, len(keys) - 1):
        skipped = keys[kept[-1] + 1 : place + 1]
        if len(skipped) > MOST_SKIPPED or not _is_straight(
            keys[kept[-1]], skipped, keys[place + 1]
        ):
            kept.append(place)
    return [keys[place] for place in sorted({*kept, len(keys) - 1})]


def _is_straight(
    before: tuple[int, Box], keys: Sequence[tuple[int, Box]], after: tuple[int, Box]
) -> bool:
    for frame, box in keys:
        guess = between(before, after, frame)
        apart = max(abs(a - b) for a, b in zip(_sides(guess), _sides(box), strict=True))
        if apart > STRAIGHT * max(box.width, box.height):
            return False
    return True


def _sides(box: Box) -> tuple[int, int, int, int]:
    return box.x0, box.y0, box.x1, box.y1
