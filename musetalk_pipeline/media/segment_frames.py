"""The source frames of a segment, in the order in which the output shows them."""

from __future__ import annotations

from contextlib import closing
from functools import partial

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
    alone = partial(read_frames, source, picture)
    if segment.turns is not None:
        kept = list(checked(alone(0, segment.turns), check))
        # Copies, because a frame may be shown again, and what is drawn into it is for one use only.
        yield from (kept[frame].copy() for frame in shown)
        return
    if segment.step > 0:
        yield from checked((read or alone)(shown[0], shown[-1] + 1), check)
        return
    # A running reader could not go on from here, because the next segment lies before this one.
    held = list(checked(alone(shown[-1], shown[0] + 1), check))
    while held:
        yield held.pop()
