"""The source frames of a segment, in the order in which the output shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.reader import Frames, ReadFrames
from musetalk_pipeline.plan import Segment
from musetalk_pipeline.watch import Check, go_on


def checked(frames: Frames, check: Check) -> Frames:
    """Pass frames on, calling `check` before each. Closing this closes `frames` and their child."""
    with closing(frames):
        for frame in frames:
            check()
            yield frame


def frames_in_order(
    source: SourceVideo,
    picture: Picture,
    segment: Segment,
    *,
    read: ReadFrames | None = None,
    check: Check = go_on,
) -> Frames:
    """Decode the source frames of a segment; yield them in output order. The caller owns them.

    Video decodes forwards only, so a segment on the way back is held in memory and yielded from its
    end, and each frame is released at once. `read`: a running reader, for callers that compose one
    segment after the other; None starts a decoder.
    """
    shown = segment.source_frames()
    first, end = min(shown), max(shown) + 1
    alone = partial(read_frames, source, picture)
    if all(frame <= following for frame, following in pairwise(shown)):
        with closing(checked((read or alone)(first, end), check)) as frames:
            yield from _repeated(frames, first, shown)
        return
    # A running reader could not go on from here, because the next segment lies before this one.
    held = list(checked(alone(first, end), check))
    if shown != list(range(first, end))[::-1]:
        # Copies, because a frame is shown again, and what is drawn into it is for one use only.
        yield from (held[frame - first].copy() for frame in shown)
        return
    while held:
        yield held.pop()


def _repeated(frames: Frames, first: int, shown: Sequence[int]) -> Frames:
    """Yield each frame, which are numbered from `first` on, as often as it is shown."""
    times = Counter(shown)
    for number, frame in enumerate(frames, first):
        for _ in range(times[number] - 1):
            yield frame.copy()
        if times[number]:
            yield frame
