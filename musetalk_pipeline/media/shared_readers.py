"""Decoders that the threads of a stage leave to each other.

Starting a decoder costs 65 ms of CPU, most of it for the dynamic linking of ffmpeg, and a decoder
that begins in the middle first decodes everything since the last key frame. A stage takes the
segments of a job almost in order. So a decoder that has delivered its range waits for the next
range of that job, which may leave out a few frames.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.media.decode import FRAME_S, START_S, frame_bytes, read_frames
from musetalk_pipeline.media.reader import MAX_AGE_S, Frames, ReadFrames

IDLE_S = 10.0  # a decoder without a next range holds memory for so long
# Leaving out more frames than this would cost more than a decoder that starts at the right place.
SKIP_FRAMES, SKIP_BYTES = 100, 64 << 20
# All that wait may hold so much, one of them more if its pictures are large. A decoder holds the
# pictures that others refer to, at most 16 in H.264, and those on their way out (guess).
IDLE_BYTES, HELD_FRAMES = 256 << 20, 24
# What a decoder delivered first is kept, if it is no more than this, for one more reading. The
# frames that are searched for a face before a job begins are the first of its first block.
KEPT_BYTES = 32 << 20

ReaderOf = Callable[[SourceVideo, Picture], ReadFrames]


@dataclass(slots=True, eq=False)
class _Decoder:
    """One that delivers the frames from `place` on.

    `kept`: the frames from `start` to `place`; None if they are not kept. `idle_since`: when it was
    left to others.
    """

    job: str
    source: SourceVideo
    picture: Picture
    frames: Frames
    start: int
    place: int
    opened: float
    kept: list[NDArray[np.uint8]] | None
    idle_since: float = 0.0

    def has(self, start: int, skip: int) -> bool:
        """Tell whether it delivers a frame next, after leaving out so many at most."""
        return start - skip <= self.place <= start or (
            self.kept is not None and self.start <= start < self.place
        )

    def read(self, start: int, end: int, *, keeps: bool) -> Frames:
        """Yield the frames `[start, end)`."""
        kept, self.kept = self.kept, (self.kept if keeps else None)
        if kept is not None and start < self.place:
            again = kept[start - self.start : end - self.start]
            yield from (frame.copy() for frame in again)
        while self.place < end:
            frame = next(self.frames)
            self.place += 1
            self._keep(frame)
            if self.place > start:
                yield frame

    def _keep(self, frame: NDArray[np.uint8]) -> None:
        if self.kept is not None:
            self.kept.append(frame.copy())
            if len(self.kept) * frame.nbytes > KEPT_BYTES:
                self.kept = None


class SharedReaders:
    """Reads ranges of the videos of several jobs, from any thread.

    Args:
        most: decoders that wait, if they do not hold too much memory. The one that has waited
            longest makes room for another.
        idle_s: how long one waits.
        max_age_s: older ones are not used again. Each has its deadline from its start.
    """

    def __init__(
        self,
        most: int,
        *,
        idle_s: float = IDLE_S,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._idle_s = idle_s
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []  # the one that has waited longest is first
        self._sweeper: threading.Timer | None = None

    def of(
        self, job: str, source: SourceVideo, picture: Picture, *, keeps: bool = False
    ) -> ReadFrames:
        """Return what reads ranges of a video as `decode.read_frames` does, for a job.

        `keeps`: what a decoder delivers first is kept for one more reading, if it is not too much.
        """
        return partial(self._read, job, source, picture, keeps)

    def close(self, job: str | None = None) -> None:
        """End the decoders that wait for ranges of a job; of all jobs if it is None."""
        self._end(lambda decoder: job is None or decoder.job == job)

    def _read(
        self, job: str, source: SourceVideo, picture: Picture, keeps: bool, start: int, end: int
    ) -> Frames:
        """Yield the frames `[start, end)`. If the caller leaves early, the decoder ends."""
        decoder = self._take(job, source, picture, start)
        if decoder is None:
            # Whoever takes it at the last moment has as long as if it were started then.
            seconds = START_S + FRAME_S * max(end - start, SKIP_FRAMES) + self._max_age_s
            frames = read_frames(source, picture, start, source.n_frames, seconds=seconds)
            kept: list[NDArray[np.uint8]] | None = [] if keeps else None
            decoder = _Decoder(job, source, picture, frames, start, start, self._clock(), kept)
        try:
            yield from decoder.read(start, end, keeps=keeps)
        except BaseException:
            decoder.frames.close()
            raise
        self._leave(decoder)

    def _take(self, job: str, source: SourceVideo, picture: Picture, start: int) -> _Decoder | None:
        """Return the decoder that waits nearest before `start`, or has kept that frame."""
        skip = min(SKIP_FRAMES, SKIP_BYTES // frame_bytes(picture.width, picture.height))
        oldest = self._clock() - self._max_age_s
        with self._lock:
            fit = [
                decoder
                for decoder in self._idle
                if decoder.job == job
                and (decoder.source, decoder.picture) == (source, picture)
                and decoder.has(start, skip)
                and decoder.opened >= oldest
            ]
            nearest = max(fit, key=lambda decoder: decoder.place, default=None)
            if nearest is not None:
                self._idle.remove(nearest)
        return nearest

    def _leave(self, decoder: _Decoder) -> None:
        """Let a decoder wait, if there is anything left to read."""
        ending = []
        with self._lock:
            decoder.idle_since = self._clock()
            self._idle.append(decoder)
            if decoder.place >= decoder.source.n_frames:
                ending.append(self._idle.pop())
            while len(self._idle) > 1 and not self._may_wait():
                ending.append(self._idle.pop(0))
            self._sweep_later()
        for one in ending:
            one.frames.close()

    def _may_wait(self) -> bool:
        """Tell whether no more wait than may. To be called with the lock."""
        pictures = [decoder.picture for decoder in self._idle]
        held = sum(HELD_FRAMES * frame_bytes(one.width, one.height) for one in pictures)
        return len(pictures) <= self._most and held <= IDLE_BYTES

    def _sweep_later(self) -> None:
        """Have those that wait too long ended. To be called with the lock."""
        if self._idle and self._sweeper is None:
            self._sweeper = threading.Timer(self._idle_s, self._sweep)
            self._sweeper.daemon = True
            self._sweeper.start()

    def _sweep(self) -> None:
        oldest = self._clock() - self._idle_s
        with self._lock:
            self._sweeper = None
        self._end(lambda decoder: decoder.idle_since <= oldest)
        with self._lock:
            self._sweep_later()

    def _end(self, chosen: Callable[[_Decoder], bool]) -> None:
        with self._lock:
            ending = [decoder for decoder in self._idle if chosen(decoder)]
            self._idle = [decoder for decoder in self._idle if decoder not in ending]
        for decoder in ending:
            decoder.frames.close()
