"""The streams of an ingress: their fragments in files, and what is in them in memory.

A stream belongs to one attempt at a job, and has a folder of its own. It is kept for some time
after the attempt, under a budget of bytes; one that is being made always stays. Those of an ingress
end with its process: the next one removes what it finds.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from serve_app.private_folders import FOLDER_MODE
from serve_app.streams.playlist import FRAGMENT_SUFFIX, INIT_NAME, fragment_name, playlist

logger = logging.getLogger(__name__)

SWEEP_S = 60.0


@dataclass(slots=True)
class Stream:
    """The fragments of one attempt at a job so far. One thread at a time writes it.

    `number`: that of the attempt, among all of the job. `longest_s`: of a fragment. `is_over`: no
    fragment follows. `used`: when it was last read or written, in seconds of the clock.
    """

    job_id: str
    number: int
    folder: Path
    fps: Fraction
    longest_s: Fraction
    used: float
    frames: list[int] = field(default_factory=list)
    size_bytes: int = 0
    is_over: bool = False

    @property
    def can_be_played(self) -> bool:
        """Whether it has a fragment."""
        return bool(self.frames)

    def put_init(self, data: bytes) -> None:
        """Write the init section, which comes before the first fragment.

        Raises:
            OSError: it cannot be written.
        """
        self._write(INIT_NAME, data)

    def put(self, data: bytes, frames: int) -> None:
        """Add a fragment of so many frames.

        Raises:
            OSError: it cannot be written.
        """
        self._write(fragment_name(len(self.frames)), data)
        self.frames.append(frames)

    def playlist(self, folder: str, query: str) -> str:
        """Return the playlist as of now; see `playlist.playlist`."""
        # In this order, since a fragment may be added meanwhile.
        is_over, frames = self.is_over, tuple(self.frames)
        durations_s = [count / self.fps for count in frames]
        return playlist(durations_s, self.longest_s, folder, query, is_over=is_over)

    def file(self, name: str) -> Path | None:
        """Return the file with that name; None if the stream has none."""
        if not self.can_be_played:
            return None
        number = name.removesuffix(FRAGMENT_SUFFIX)
        is_fragment = number.isascii() and number.isdecimal() and int(number) < len(self.frames)
        if name != INIT_NAME and not (is_fragment and name == fragment_name(int(number))):
            return None
        return self.folder / name

    def _write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)
        self.size_bytes += len(data)


class Streams:
    """The streams in `folder`: the newest of each job. May be used from several threads."""

    def __init__(
        self,
        folder: Path,
        keep_s: float,
        max_bytes: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._keep_s, self._max_bytes = keep_s, max_bytes
        self._clock = clock
        # Called with the id of a job when something of it can be played, by whoever makes the
        # stream.
        self.on_ready: Callable[[str], None] = lambda job_id: None
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}  # by the id of their job

    def clear(self) -> None:
        """Remove what an earlier process has left."""
        for path in self._folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    def begin(
        self, job_id: str, number: int, attempt_id: str, fps: Fraction, longest_s: Fraction
    ) -> Stream:
        """Begin the stream of an attempt, in place of that of an earlier one.

        Raises:
            OSError: its folder cannot be made.
        """
        folder = self._folder / attempt_id
        folder.mkdir(mode=FOLDER_MODE)
        stream = Stream(job_id, number, folder, fps, longest_s, self._clock())
        with self._lock:
            earlier = self._streams.pop(job_id, None)
            self._streams[job_id] = stream
        if earlier is not None:
            shutil.rmtree(earlier.folder, ignore_errors=True)
        return stream

    def end(self, stream: Stream) -> None:
        """Note that no fragment follows. A stream without any is removed."""
        stream.used, stream.is_over = self._clock(), True
        if not stream.can_be_played:
            self._remove(stream)

    def find(self, job_id: str, number: int) -> Stream | None:
        """Return the stream of an attempt, if there is something to play in it, and mark it as
        used.
        """
        stream = self._streams.get(job_id)
        if stream is None or stream.number != number or not stream.can_be_played:
            return None
        stream.used = self._clock()
        return stream

    def has(self, job_id: str, number: int) -> bool:
        """Whether `find` would return a stream."""
        stream = self._streams.get(job_id)
        return stream is not None and stream.number == number and stream.can_be_played

    def sweep(self) -> None:
        """Remove streams that are over: those that were not used for a while, and those that were
        not used for the longest time while all streams together are too large.
        """
        with self._lock:
            streams = sorted(self._streams.values(), key=lambda stream: stream.used)
        excess = sum(stream.size_bytes for stream in streams) - self._max_bytes
        oldest = self._clock() - self._keep_s
        for stream in streams:
            if stream.is_over and (stream.used < oldest or excess > 0):
                excess -= stream.size_bytes
                self._remove(stream)

    def start_janitor(self) -> None:
        """Sweep regularly, in a thread that ends with the process."""

        def loop() -> None:
            while True:
                time.sleep(SWEEP_S)
                self.sweep()

        threading.Thread(target=loop, name="streams-janitor", daemon=True).start()

    def _remove(self, stream: Stream) -> None:
        with self._lock:
            if self._streams.get(stream.job_id) is stream:
                del self._streams[stream.job_id]
        shutil.rmtree(stream.folder, ignore_errors=True)
