"""A job as a stream: in order, to an honest end, and never at the expense of the job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from musetalk_pipeline.artifacts import ColourTags, Picture
from musetalk_pipeline.errors import StageFailed
from musetalk_pipeline.media.encode import PieceEncoder
from musetalk_pipeline.options import EncodeOptions
from musetalk_pipeline.plan import Segment, plan_frames
from serve_app.config.settings import DriverSettings
from serve_app.graph.job_stream import JobStreams
from serve_app.graph.stage_calls import StageCalls
from serve_app.streams.streams import Streams
from tests.unit.stage_rig import AT_ONCE, Handle, exists, is_lost, until

FPS = Fraction(25)
PICTURE = Picture(64, 48, 64, 48, 0, 0, None, ColourTags())
PLAN = plan_frames(125, 125, FPS)  # 50, 50 and 25 frames
JOB = "a"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Five seconds of silence in an .m4a."""
    path = tmp_path_factory.mktemp("sound") / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16_000)
        for start in range(0, 80_000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16_000, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture(scope="module")
def pieces() -> list[Any]:
    """Encoded segments of `PLAN`."""
    made = []
    for segment in PLAN.segments:
        with PieceEncoder(PICTURE, FPS, EncodeOptions(preset="ultrafast")) as encoder:
            for number in range(segment.start, segment.end):
                encoder.add(np.full((72, 64), number, np.uint8))
            made.append(encoder.finish())
    return made


class Rig:
    """Streams of an ingress without Ray, and one job that is made by hand."""

    def __init__(self, folder: Path, sound: Callable[..., Any], pieces: list[Any]) -> None:
        self.folder, self._pieces = folder, pieces
        (folder / "streams").mkdir()
        self.streams = Streams(folder / "streams", 60.0, 1e9)
        calls = StageCalls(DriverSettings(tries=1), AT_ONCE, exists, is_lost)
        self._of = JobStreams(self.streams, Handle(sound=sound), calls, 60.0).of
        job = SimpleNamespace(plan=PLAN, picture=PICTURE)
        attempt = SimpleNamespace(job_id=JOB, attempt_id="a" * 32)
        self.opened: Any = SimpleNamespace(job=job, attempt=attempt)

    def made(self) -> Any:
        """Return the context in which the job is made."""
        return self._of(self.opened, 1)

    def piece(self, number: int) -> tuple[Segment, Path]:
        """Return a segment and the file of its piece."""
        path = self.folder / f"piece-{number}"
        self._pieces[number].tofile(path)
        return PLAN.segments[number], path

    @property
    def frames(self) -> list[int]:
        """The frames of the fragments so far."""
        stream = self.streams.find(JOB, 1)
        return [] if stream is None else list(stream.frames)

    @property
    def is_over(self) -> bool:
        stream = self.streams.find(JOB, 1)
        return stream is not None and stream.is_over


@pytest.fixture
def rig(tmp_path: Path, sound: bytes, pieces: list[Any]) -> Rig:
    async def track(opened: Any) -> Any:
        return np.frombuffer(sound, np.uint8)

    return Rig(tmp_path, track, pieces)


async def test_pieces_become_fragments_in_order(rig, tmp_path):
    announced: list[str] = []
    rig.streams.on_ready = announced.append
    async with rig.made() as on_piece:
        on_piece(*rig.piece(1))
        assert announced == []
        on_piece(*rig.piece(0))
        await until(lambda: rig.frames == [50, 50])
        assert announced == [JOB]
        assert not rig.is_over
        on_piece(*rig.piece(2))
    await until(lambda: rig.is_over)
    assert rig.frames == [50, 50, 25]
    stream = rig.streams.find(JOB, 1)
    assert sorted(path.name for path in stream.folder.iterdir()) == [
        "0.m4s", "1.m4s", "2.m4s", "init.mp4",
    ]  # fmt: skip
    whole = tmp_path / "whole.mp4"
    names = ("init.mp4", "0.m4s", "1.m4s", "2.m4s")
    whole.write_bytes(b"".join(stream.file(name).read_bytes() for name in names))
    with av.open(str(whole)) as container:
        shown = [frame.to_ndarray()[0, 0] for frame in container.decode(video=0)]
    assert np.abs(np.array(shown, int) - np.arange(125)).max() <= 3


async def test_a_job_that_fails_ends_its_stream_where_it_is(rig):
    with pytest.raises(StageFailed, match="no more"):
        async with rig.made() as on_piece:
            on_piece(*rig.piece(0))
            on_piece(*rig.piece(2))
            await until(lambda: rig.frames == [50])
            raise StageFailed("There is no more.")
    await until(lambda: rig.is_over)
    assert rig.frames == [50]


async def test_a_job_that_is_cancelled_does_so_too(rig):
    async def make() -> None:
        async with rig.made() as on_piece:
            on_piece(*rig.piece(0))
            await asyncio.Event().wait()

    making = asyncio.create_task(make())
    await until(lambda: rig.frames == [50])
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await until(lambda: rig.is_over)


async def test_a_sound_that_cannot_be_had_costs_only_the_stream(tmp_path, pieces, caplog):
    async def track(opened: Any) -> Any:
        raise StageFailed("There is no sound.")

    rig = Rig(tmp_path, track, pieces)
    async with rig.made() as on_piece:
        on_piece(*rig.piece(0))
        await until(lambda: "stream ended early" in caplog.text)
    assert rig.frames == []
    await until(lambda: not any((tmp_path / "streams").iterdir()))


async def test_a_piece_that_cannot_be_read_costs_only_the_rest_of_the_stream(rig, caplog):
    segment, path = rig.piece(1)
    path.write_bytes(b"no piece")
    async with rig.made() as on_piece:
        on_piece(*rig.piece(0))
        on_piece(segment, path)
        await until(lambda: "stream ended early" in caplog.text)
        await until(lambda: rig.is_over)
    assert rig.frames == [50]


async def test_a_job_that_ends_before_its_stream_has_begun_leaves_none(tmp_path, pieces):
    asked, wait = asyncio.Event(), asyncio.Event()

    async def track(opened: Any) -> Any:
        asked.set()
        await wait.wait()

    rig = Rig(tmp_path, track, pieces)
    with pytest.raises(StageFailed):
        async with rig.made():
            await asked.wait()
            raise StageFailed("No.")
    await until(lambda: not any((tmp_path / "streams").iterdir()))
