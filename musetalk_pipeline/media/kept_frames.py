"""Decoded frames that are kept until they are composed, instead of being decoded twice."""

from __future__ import annotations

from collections import deque
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.media.reader import Frames, ReadFrames
from musetalk_pipeline.plan import Block


def keeping(read: ReadFrames, block: Block, kept: deque[NDArray[np.uint8]]) -> ReadFrames:
    """Return a reader that also puts the block's frames into `kept`."""

    def read_and_keep(start: int, end: int) -> Frames:
        with closing(read(start, end)) as frames:
            for number, frame in enumerate(frames, start):
                if block.start <= number < block.end:
                    kept.append(frame)
                yield frame

    return read_and_keep


def emptying(kept: deque[NDArray[np.uint8]]) -> Frames:
    """Yield frames and let each go."""
    while kept:
        yield kept.popleft()
