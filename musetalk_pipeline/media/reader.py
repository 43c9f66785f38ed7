"""Reading one range of frames after the other without starting a decoder for each.

A decoder that begins in the middle first decodes everything since the last key frame, often many
seconds of video, and throws it away. A job in a single process reads its blocks in order, so its
decoder continues where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.media.decode import read_frames

Frames = Generator[NDArray[np.uint8], None, None]
ReadFrames = Callable[[int, int], Frames]

# A decoder waits between ranges while its deadline (60 s and more) runs on. One older than this is
# replaced, which costs little compared with the time that it has waited.
MAX_AGE_S = 30.0


class RunningReader:
    """Reads ranges as `decode.read_frames` does, cheaply if one begins where the last one ended.

    It belongs to one thread. Leaving the `with` block ends its decoder.
    """

    def __init__(
        self, source: SourceVideo, picture: Picture, end: int, *, max_age_s: float = MAX_AGE_S
    ) -> None:
        """`end`: no range goes beyond it. `max_age_s`: at which a decoder is replaced."""
        self._source, self._picture, self._end = source, picture, end
        self._max_age_s = max_age_s
        self._frames: Frames | None = None
        self._place = 0
        self._opened = 0.0

    def __call__(self, start: int, end: int) -> Frames:
        """Yield the frames `[start, end)`; see `read_frames`."""
        is_old = time.monotonic() - self._opened > self._max_age_s
        if self._frames is None or start != self._place or is_old:
            self.close()
            self._frames = read_frames(self._source, self._picture, start, self._end)
            self._place, self._opened = start, time.monotonic()
        for _ in range(start, end):
            frame = next(self._frames)
            self._place += 1
            yield frame

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the decoder."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None
