"""One job as a stream that grows while the job is made.

    sound (Finisher) ─► a file here ─┐
    pieces, in any order ────────────┴► in order ─► fragments on this node

A stream never holds up its job, and none of its faults ends the job: the stream ends early.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from musetalk_pipeline.errors import PipelineError, Stage
from musetalk_pipeline.media.fragments import Fragments
from musetalk_pipeline.plan import Segment
from serve_app.graph.stage_calls import StageCalls
from serve_app.graph.transfers import Opened
from serve_app.streams.streams import Stream, Streams

logger = logging.getLogger(__name__)

SOUND_NAME = "sound.m4a"
# At a time. A Finisher accepts so many calls beside those that its threads are at, and these calls
# need no thread of it, so pieces are made meanwhile.
SOUNDS = 2
LAST_FRAGMENTS_S = 10.0  # after a success; they take milliseconds, unless the disk stalls

# Called with each segment and the file of its encoded piece.
OnPiece = Callable[[Segment, Path], None]
P = ParamSpec("P")
T = TypeVar("T")


class JobStreams:
    """Makes the streams of all jobs of an ingress, in a thread of its own."""

    def __init__(self, streams: Streams, finisher: Any, calls: StageCalls, sound_s: float) -> None:
        """`finisher`: the deployment. `sound_s`: the deadline of encoding the sound of a job."""
        self._streams = streams
        self._finisher, self._calls, self._sound_s = finisher, calls, sound_s
        self._sounds = asyncio.Semaphore(SOUNDS)
        self._thread = ThreadPoolExecutor(1, "streams")

    @asynccontextmanager
    async def of(self, opened: Opened, number: int) -> AsyncIterator[OnPiece]:
        """Make the stream of a job whose pieces are made in this context. `number`: that of the
        attempt.
        """
        growing = _GrowingStream(opened)
        making = asyncio.create_task(self._make_or_log(growing, number))
        try:
            yield growing.add
            await asyncio.wait({making}, timeout=LAST_FRAGMENTS_S)
        finally:
            making.cancel()
            await asyncio.wait({making}, timeout=LAST_FRAGMENTS_S)

    async def _make_or_log(self, growing: "_GrowingStream", number: int) -> None:
        beginning = self._thread.submit(self._begin, growing.opened, number)
        try:
            await self._make(growing, await asyncio.wrap_future(beginning))
        except (PipelineError, OSError) as exc:
            job_id, error = growing.opened.attempt.job_id, f"{type(exc).__name__}: {exc}"[:500]
            logger.warning("stream ended early", extra={"job_id": job_id, "error": error})
        finally:
            # The thread does this after everything that was begun before.
            await asyncio.wrap_future(self._thread.submit(self._end, beginning))

    async def _make(self, growing: "_GrowingStream", stream: Stream) -> None:
        job = growing.opened.job
        track = stream.folder / SOUND_NAME
        async with self._sounds:
            sound = await self._calls.repeated(
                lambda: self._calls.result(
                    self._finisher.sound.remote(growing.opened), self._sound_s
                ),
                Stage.POSTPROCESSING,
            )
        await self._run(sound.tofile, track)
        del sound  # up to a megabyte a minute
        fragments = await self._run(Fragments, track, job.picture, job.plan.fps)
        try:
            while fragments.frames < job.plan.n_output:
                segment, path = await growing.piece_at(fragments.frames)
                is_last = segment.end == job.plan.n_output
                await self._run(_append, stream, fragments, path, is_last)
                if segment.start == 0:
                    self._streams.on_ready(stream.job_id)
        finally:
            self._thread.submit(fragments.close)

    def _begin(self, opened: Opened, number: int) -> Stream:
        plan, attempt = opened.job.plan, opened.attempt
        longest_s = max(len(segment) for segment in plan.segments) / plan.fps
        self._streams.sweep()
        return self._streams.begin(attempt.job_id, number, attempt.attempt_id, plan.fps, longest_s)

    def _end(self, beginning: "Future[Stream]") -> None:
        if beginning.cancelled() or beginning.exception() is not None:
            return
        stream = beginning.result()
        (stream.folder / SOUND_NAME).unlink(missing_ok=True)
        self._streams.end(stream)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(function, *args, **kwargs))


class _GrowingStream:
    """The pieces of a job that wait for those before them."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self._waiting: dict[int, tuple[Segment, Path]] = {}  # by their first frame
        self._added = asyncio.Event()

    def add(self, segment: Segment, path: Path) -> None:
        """Take the file of a piece."""
        self._waiting[segment.start] = segment, path
        self._added.set()

    async def piece_at(self, start: int) -> tuple[Segment, Path]:
        """Wait for the piece that begins with frame `start`."""
        while start not in self._waiting:
            self._added.clear()
            await self._added.wait()
        return self._waiting.pop(start)


def _append(stream: Stream, fragments: Fragments, path: Path, is_last: bool) -> None:
    piece = np.fromfile(path, np.uint8)
    before = fragments.frames
    if before == 0:
        stream.put_init(fragments.init_section(piece))
    data = fragments.next(piece, is_last=is_last)
    stream.put(data, fragments.frames - before)
