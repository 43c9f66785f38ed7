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

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.media.decode import FRAME_S, START_S, frame_bytes, read_frames
from musetalk_pipeline.media.reader import MAX_AGE_S, Frames, ReadFrames

IDLE_S = 10.0  # a decoder without a next range holds memory for so long
# Leaving out more frames than this would cost more than a decoder that starts at the right place.
SKIP_FRAMES, SKIP_BYTES = 100, 64 << 20


@dataclass(slots=True, eq=False)
class _Decoder:
    """One that delivers the frames from `place` on. `idle_since`: when it was left to others."""

    job: str
    source: SourceVideo
    picture: Picture
    frames: Frames
    place: int
    opened: float
    idle_since: float = 0.0


class SharedReaders:
    """Reads ranges of the videos of several jobs, from any thread.

    Args:
        most: decoders that wait; the one that has waited longest makes room for another.
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

    def of(self, job: str, source: SourceVideo, picture: Picture) -> ReadFrames:
        """Return what reads ranges of a video as `decode.read_frames` does, for a job."""
        return partial(self._read, job, source, picture)

    def close(self, job: str | None = None) -> None:
        """End the decoders that wait for ranges of a job; of all jobs if it is None."""
        self._end(lambda decoder: job is None or decoder.job == job)

    def _read(
        self, job: str, source: SourceVideo, picture: Picture, start: int, end: int
    ) -> Frames:
        """Yield the frames `[start, end)`. If the caller leaves early, the decoder ends."""
        decoder = self._take(job, source, picture, start)
        if decoder is None:
            decoder = self._start(job, source, picture, start, end)
        try:
            while decoder.place < end:
                frame = next(decoder.frames)
                decoder.place += 1
                if decoder.place > start:
                    yield frame
        except BaseException:
            decoder.frames.close()
            raise
        self._leave(decoder)

    def _start(
        self, job: str, source: SourceVideo, picture: Picture, start: int, end: int
    ) -> _Decoder:
        # Whoever takes it at the last moment has as long as if the range had a decoder of its own.
        seconds = START_S + FRAME_S * max(end - start, SKIP_FRAMES) + self._max_age_s
        frames = read_frames(source, picture, start, source.n_frames, seconds=seconds)
        return _Decoder(job, source, picture, frames, start, self._clock())

    def _take(self, job: str, source: SourceVideo, picture: Picture, start: int) -> _Decoder | None:
        """Return the decoder that waits nearest before `start`, unless it is too far away."""
        skip = min(SKIP_FRAMES, SKIP_BYTES // frame_bytes(picture.width, picture.height))
        oldest = self._clock() - self._max_age_s
        with self._lock:
            fit = [
                decoder
                for decoder in self._idle
                if decoder.job == job
                and (decoder.source, decoder.picture) == (source, picture)
                and start - skip <= decoder.place <= start
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
            while len(self._idle) > self._most:
                ending.append(self._idle.pop(0))
            self._sweep_later()
        for one in ending:
            one.frames.close()

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
