"""A job's media on their way from a server to the stages of one node, and of another one."""

import asyncio
import dataclasses
import hashlib
import os
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.artifacts import SpeechAudio
from musetalk_pipeline.errors import (
    DownloadFailed,
    MediaError,
    MediaTooLarge,
    SourceRefused,
    StageFailed,
)
from musetalk_pipeline.faces.mesh import MeshDetector
from musetalk_pipeline.media.speech_audio import make_track
from musetalk_pipeline.options import JobOptions
from serve_app.config.environment import Environment
from serve_app.config.settings import AppArgs
from serve_app.contract.requests import JobRequest
from serve_app.graph import node_media
from serve_app.graph.builders import build_uploads
from serve_app.graph.ingress_uploads import copy_upload
from serve_app.graph.node_media import TRACK_WITHIN_S, NodeMedia, preprocessor_threads
from serve_app.graph.stage_threads import StageThreads
from serve_app.graph.transfers import Assignment, Attempt
from serve_app.inputs.download_body import DownloadLimits
from serve_app.uploads.folder import UploadPiece
from tests.hostile.raw_server import Exchange, RawServer, serve

SIGNED = "?X-Amz-Signature=planted-secret"
Node = Callable[..., NodeMedia]


async def gone(upload_id: str, offset: int) -> UploadPiece | None:
    """Answer as an ingress without uploads does."""
    return None


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Make the part of a replica that keeps media, on a node with scratch of its own."""

    def make(name: str, **more: object) -> NodeMedia:
        args = AppArgs.model_validate(
            {
                "pools": [{"name": "cpu"}],
                "work_dir": str(tmp_path / name),
                "result_dir": str(tmp_path / "results"),
                "state_dir": str(tmp_path / "state"),
                "inputs": {"allowed_hosts": ["127.0.0.1"]},
                **more,
            }
        )
        return NodeMedia(args, Environment(), node_id=name, read_upload=gone)

    return make


class CountingThreads(StageThreads):
    """Counts the calls that occupy a thread."""

    runs = 0

    async def run(self, *call: Any) -> Any:
        self.runs += 1
        return await super().run(*call)


@pytest.fixture
def threads() -> StageThreads:
    return StageThreads(2, "test")


@pytest.fixture
def detector() -> Iterator[MeshDetector]:
    yield MeshDetector()


@pytest.fixture
def files(clip, speech) -> dict[str, bytes]:
    return {"/v.mp4": clip().read_bytes(), "/a.wav": speech(0.6).read_bytes()}


def serving(files: dict[str, bytes]):
    async def script(e: Exchange) -> None:
        body = files.get(e.path.partition("?")[0])
        await (e.answer("404 Not Found") if body is None else e.answer("200 OK", body))

    return serve(script)


def attempt(server: RawServer) -> Attempt:
    return attempt_at(server.url("/v.mp4" + SIGNED), server.url("/a.wav" + SIGNED))


def attempt_at(video_url: str, audio_url: str) -> Attempt:
    request = JobRequest(musetalk_job_id="job", video_url=video_url, audio_url=audio_url)
    return Attempt.of(Assignment(uuid.uuid4().hex, None, "job", 1, request, JobOptions()))


@pytest.mark.parametrize(("missing", "named"), [("/v.mp4", "video"), ("/a.wav", "audio")])
async def test_the_file_that_cannot_be_fetched_is_named(node, files, missing, named):
    """Mend 2.6: also when the error has crossed to another process."""
    del files[missing]
    async with serving(files) as server:
        with pytest.raises(DownloadFailed, match="404 Not Found") as failed:
            await node("one").fetch(attempt(server))
    error = pickle.loads(pickle.dumps(failed.value))
    assert (error.input, error.message) == (named, "Download failed: 404 Not Found")
    assert "Sign it again" in error.hint


async def test_a_path_instead_of_an_address_is_the_videos_fault(node, files):
    """Mend 2.6."""
    async with serving(files) as server:
        work = attempt(server)
        sources = dataclasses.replace(work.sources, video_url="/tmp/a.mp4")
        with pytest.raises(SourceRefused) as refused:
            await node("one").fetch(dataclasses.replace(work, sources=sources))
    assert refused.value.input == "video" and "file:///tmp/a.mp4" in refused.value.hint


async def test_media_are_fetched_and_hashed_once(node, files, threads, detector, monkeypatch):
    """Mend 3.10: the digest of the download is that of the job; nobody reads the files for it."""
    media = node("one")
    async with serving(files) as server:
        work = attempt(server)
        fetched = await media.fetch(work)
        monkeypatch.setattr(hashlib, "file_digest", None)  # nobody may call it
        again = await media.fetch(work)  # as after an answer that was lost
        opened = await media.open(work, fetched, detector, threads)
        assert await media.here(opened.value, threads) == opened.value.job
        assert len(server.exchanges) == 2
    assert again.value == fetched.value
    assert opened.value.job.source.sha256 == hashlib.sha256(files["/v.mp4"]).hexdigest()
    assert opened.value.job.audio.sha256 == hashlib.sha256(files["/a.wav"]).hexdigest()
    assert opened.costs[0] == fetched.own and opened.own.stage == "validation"


async def test_an_upload_is_fetched_and_an_expired_one_is_the_callers(
    node, files, threads, detector, tmp_path
):
    """It takes no space of its own in the scratch of the job, and its digest is known."""
    media = node("one")
    args = AppArgs.model_validate({"pools": [{"name": "cpu"}], "state_dir": str(tmp_path / "state"),
                                   "work_dir": str(tmp_path / "one"),
                                   "result_dir": str(tmp_path / "results")})  # fmt: skip
    uploads = build_uploads(args, Environment())
    ids = {}
    for name, content in (("video", files["/v.mp4"]), ("audio", files["/a.wav"])):
        upload = uploads.create("owner", name, len(content))
        uploads.append("owner", upload.record.id, 0, content)
        ids[name] = uploads.complete("owner", upload.record.id).record.id
    work = attempt_at(*(f"upload://{ids[name]}" for name in ("video", "audio")))
    fetched = await media.fetch(work)
    opened = await media.open(work, fetched, detector, threads)
    assert opened.value.job.source.sha256 == hashlib.sha256(files["/v.mp4"]).hexdigest()
    assert opened.value.job.source.path.stat().st_nlink == 2
    uploads.delete("owner", ids["audio"])
    with pytest.raises(DownloadFailed, match="not kept") as failed:
        await media.fetch(dataclasses.replace(work, attempt_id=uuid.uuid4().hex))
    assert failed.value.input == "audio"


async def test_an_upload_on_another_node_is_copied_in_pieces(tmp_path):
    """Digest and size are those of the whole, and a piece that is wrong is noticed."""
    content = os.urandom(2500)
    digest = hashlib.sha256(content).hexdigest()

    async def read(upload_id: str, offset: int) -> UploadPiece | None:
        return UploadPiece(digest, len(content), content[offset : offset + 1000])

    async def read_wrongly(upload_id: str, offset: int) -> UploadPiece | None:
        return UploadPiece(digest, len(content), bytes(1000))

    target, limits = tmp_path / "video", DownloadLimits()
    assert await copy_upload(read, "0" * 32, target, limits) == digest
    assert target.read_bytes() == content
    with pytest.raises(StageFailed, match="damaged"):
        await copy_upload(read_wrongly, "0" * 32, target, limits)
    with pytest.raises(MediaTooLarge):
        await copy_upload(read, "0" * 32, target, DownloadLimits(max_bytes=2000))
    assert await copy_upload(gone, "0" * 32, target, limits) is None
    assert list(tmp_path.iterdir()) == []


async def test_the_configured_block_length_is_that_of_the_plan(node, files, threads, detector):
    """Mend 3.3: `driver.block_s` had no reader."""
    media = node("one", driver={"block_s": 0.2})
    async with serving(files) as server:
        work = attempt(server)
        opened = await media.open(work, await media.fetch(work), detector, threads)
    assert [len(block) for block in opened.value.job.plan.blocks] == [5, 5, 5]


async def test_another_node_cuts_the_same_part_of_the_sound(node, files, threads, detector):
    chosen = {"sync_mode": "silence", "audio_start_s": 0.2, "video_start_s": 0.2}
    async with serving(files) as server:
        work = dataclasses.replace(attempt(server), options=JobOptions().with_choices(chosen))
        one, other = node("one"), node("other")
        opened = await one.open(work, await one.fetch(work), detector, threads)
        here = opened.value.job
        there = await other.here(opened.value, threads)
    assert there.plan == here.plan and there.plan.n_output == 20
    assert (there.audio.key, there.audio.n_samples) == (here.audio.key, here.audio.n_samples)
    assert there.audio.pcm_path != here.audio.pcm_path
    assert there.audio.pcm_path.read_bytes() == here.audio.pcm_path.read_bytes()
    assert there.audio.track_path.read_bytes() == here.audio.track_path.read_bytes()


async def test_long_sound_is_encoded_once_on_each_node(
    node, files, threads, detector, speech, monkeypatch
):
    files["/a.wav"] = speech(TRACK_WITHIN_S + 0.5).read_bytes()
    made: list[Path] = []

    def make(audio: SpeechAudio, *more: Any) -> None:
        if not audio.track_path.exists():
            made.append(audio.track_path)
        make_track(audio, *more)

    monkeypatch.setattr(node_media, "make_track", make)
    async with serving(files) as server:
        work, opening, other = attempt(server), node("one"), node("two")
        fetched = await opening.fetch(work)
        opened = (await opening.open(work, fetched, detector, threads)).value
        for media in (opening, other):
            audio = (await media.here(opened, threads)).audio
            assert not audio.track_path.exists()
            await asyncio.gather(*(media.make_track(work, audio) for _ in range(3)))
            assert audio.track_path.exists()
    assert len(made) == len(set(made)) == 2


async def test_jobs_that_are_opened_leave_a_thread_to_jobs_that_are_open(node, files):
    begun, may_end = threading.Event(), threading.Event()

    class SlowDetector(MeshDetector):
        def detect(self, frames: Any) -> Any:
            begun.set()
            assert may_end.wait(60.0)
            return super().detect(frames)

    media, detector = node("one"), SlowDetector()
    args = AppArgs.model_validate({"pools": [{"name": "cpu"}]})
    threads = StageThreads(preprocessor_threads(args), "test")

    async def open_one(server: RawServer) -> None:
        work = attempt(server)
        await media.open(work, await media.fetch(work), detector, threads)

    async with serving(files) as server, asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(open_one(server))
        assert await asyncio.to_thread(begun.wait, 60.0)
        async with asyncio.timeout(60.0):
            assert await threads.run(lambda: "prepared") == "prepared"
        may_end.set()


async def test_another_node_fetches_for_itself_once(node, files, threads, detector):
    first, second, third = node("one"), node("two"), node("three")
    async with serving(files) as server:
        work = attempt(server)
        opened = await second.open(work, await first.fetch(work), detector, threads)
        assert len(server.exchanges) == 4
        job = await third.here(opened.value, threads)
        await third.here(opened.value, threads)
        assert len(server.exchanges) == 6
    assert job.source.path != opened.value.job.source.path
    assert job.source.sha256 == opened.value.job.source.sha256


async def test_another_node_checks_the_media_once_for_all_its_replicas(
    node, files, threads, detector
):
    """Every call of a stage on another node used to probe both files again, one after the other."""
    opener, replicas = node("one"), [node("two"), node("two")]
    counting = CountingThreads(4, "test")
    async with serving(files) as server:
        opened = await opener.open(
            work := attempt(server), await opener.fetch(work), detector, threads
        )
        calls = [media.here(opened.value, counting) for media in replicas for _ in range(4)]
        jobs = await asyncio.gather(*calls)
        assert len(server.exchanges) == 4
    assert counting.runs == 1
    assert all(job == jobs[0] for job in jobs)
    assert jobs[0].source.path.parent.parent == replicas[0].scratch.folder(work.attempt_id).parent
    replicas[0].scratch.release(work.attempt_id)
    async with serving(files):
        with pytest.raises(DownloadFailed):  # nothing that is remembered outlives the folder
            await replicas[0].here(opened.value, counting)


async def test_media_that_have_changed_are_noticed(node, files, threads, detector, clip):
    async with serving(files) as server:
        work = attempt(server)
        fetched = await node("one").fetch(work)
        opened = await node("one").open(work, fetched, detector, threads)
        files["/v.mp4"] = clip(frames=30).read_bytes()
        for other in (
            node("two").open(work, fetched, detector, threads),
            node("three").here(opened.value, threads),
        ):
            with pytest.raises(StageFailed, match="changed"):
                await other


async def test_half_fetched_media_are_fetched_again(node, files, threads, detector):
    """A replica that died between the two files has left no digests."""
    media = node("one")
    async with serving(files) as server:
        work = attempt(server)
        video = files.pop("/v.mp4")
        with pytest.raises(MediaError):
            await media.fetch(work)
        files["/v.mp4"] = video
        fetched = await media.fetch(work)
        await media.open(work, fetched, detector, threads)


async def test_the_stages_get_no_request_and_show_no_address(node, files, threads, detector):
    """Mend 3.10: the signed addresses travel in one field that `repr` and logs leave out."""
    async with serving(files) as server:
        work = attempt(server)
        fetched = await node("one").fetch(work)
        opened = await node("one").open(work, fetched, detector, threads)
    assert "planted-secret" not in repr(opened) and "planted-secret" not in repr(work)
    assert not any(isinstance(value, JobRequest) for value in fields_of(opened))


def fields_of(value: object) -> Iterator[object]:
    """Yield everything that a dataclass holds, at any depth."""
    yield value
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from fields_of(getattr(value, field.name))


async def test_scratch_that_a_cleaner_removed_is_made_again(node, files, threads, detector):
    """Mend 3.5: the next job works."""
    media = node("one")
    media.scratch._root.rmdir()
    async with serving(files) as server:
        work = attempt(server)
        opened = await media.open(work, await media.fetch(work), detector, threads)
    assert opened.value.job.plan.n_output > 0
