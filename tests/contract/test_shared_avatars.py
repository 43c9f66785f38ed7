"""The shared copy of avatars in Backblaze B2, and the cache of a machine in front of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import fake_b2
import numpy as np
import pytest
from fake_b2 import FakeB2, refuse

from musetalk_pipeline.artifacts import (
    AvatarBlock,
    ColourTags,
    Face,
    Picture,
    SourceVideo,
    SpeechAudio,
)
from musetalk_pipeline.avatars.identity import AvatarTools
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import plan_frames
from musetalk_pipeline.stages import OpenJob
from serve_app.avatars.about import BLOCK_SUFFIX
from serve_app.avatars.cache import AvatarCache
from serve_app.avatars.local import LocalAvatars
from serve_app.avatars.shared import PAUSE_S, THREAD, SharedAvatars
from serve_app.outputs.b2_bucket import B2Bucket, B2Settings
from tests.waiting import until

TOOLS = AvatarTools("warp", "2", "mesh", "landmarks", None, "frame")
AVATAR = "a" * 32
BUSY = refuse(503, "service_unavailable", "no tomes available")


@pytest.fixture
def b2() -> Iterator[FakeB2]:
    with fake_b2.running() as server:
        server.download_url = server.url
        yield server


def shared(b2: FakeB2, **changes: Any) -> SharedAvatars:
    settings = B2Settings(fake_b2.KEY_ID, fake_b2.APP_KEY, fake_b2.BUCKET, realm=b2.url)
    return SharedAvatars(B2Bucket(replace(settings, **changes)))


def cache(folder: Path, copy: SharedAvatars | None) -> AvatarCache:
    """Return the cache of a machine that has its own folder."""
    return AvatarCache(LocalAvatars(folder, 1e8, 1e6, first_to_go=BLOCK_SUFFIX), TOOLS, copy)


def opened(n_output: int = 80) -> OpenJob:
    size = Path("v"), "aa", 1000, 640, 480, Fraction(25), 80, 3.2, ColourTags()
    audio = SpeechAudio(Path("p"), Path("t"), "bb", 1000, 51_200, 3.2)
    picture = Picture(640, 480, 640, 480, 0, 0, None, ColourTags())
    plan = plan_frames(80, n_output, Fraction(25), 0.2)
    return OpenJob(SourceVideo(*size), audio, picture, plan, JobOptions())


def made(job: OpenJob, index: int) -> AvatarBlock:
    block = job.plan.blocks[index]
    face = Face(np.full((68, 2), index, np.float32), Box(0, 0, 9, 9), 0.5)
    look = np.full((len(block), 256, 256, 3), index, np.uint8)
    return AvatarBlock(block, (face,) * len(block), look, np.zeros((len(block), 32768), np.uint8))


def uploads_are_done() -> None:
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(20)
            assert not thread.is_alive()


def test_what_one_machine_makes_is_loaded_by_another(b2: FakeB2, tmp_path: Path) -> None:
    job = opened()
    one, other = cache(tmp_path / "one", shared(b2)), cache(tmp_path / "other", shared(b2))
    for index in (0, 3):
        assert one.keep(AVATAR, job, made(job, index))
    uploads_are_done()
    assert {name.rpartition("/")[0] for name in b2.files} == {f"avatar/outputs/avatars/{AVATAR}"}
    assert other.find(AVATAR, job, frozenset()) == {}
    assert set(other.find(AVATAR, job, other.shared_names(AVATAR))) == {0, 3}
    found = other.load(AVATAR, job, job.plan.blocks[3], None, within_s=20)
    assert found is not None
    np.testing.assert_array_equal(found.appearance, made(job, 3).appearance)
    # It is on the other machine now, so it is loaded without a request.
    calls = len(b2.calls)
    assert set(other.find(AVATAR, job, frozenset())) == {3}
    assert other.load(AVATAR, job, job.plan.blocks[3], None, within_s=20) is not None
    assert len(b2.calls) == calls
    assert other.load(AVATAR, job, job.plan.blocks[1], None, within_s=20) is None


def test_a_job_with_shorter_sound_loads_the_beginning_of_a_block(
    b2: FakeB2, tmp_path: Path
) -> None:
    job, shorter = opened(), opened(28)
    one, other = cache(tmp_path / "one", shared(b2)), cache(tmp_path / "other", shared(b2))
    last = shorter.plan.blocks[-1]
    assert (last.start, last.end) == (25, 28)
    one.keep(AVATAR, job, made(job, last.index))
    uploads_are_done()
    for machine in (one, other):
        files = machine.find(AVATAR, shorter, machine.shared_names(AVATAR))
        assert set(files) == {last.index}
        found = machine.load(AVATAR, shorter, last, files[last.index], within_s=20)
        assert found is not None
        assert (found.block, len(found.faces), len(found.appearance)) == (last, 3, 3)


def test_a_block_that_is_kept_already_is_not_uploaded_again(b2: FakeB2, tmp_path: Path) -> None:
    job, one = opened(), cache(tmp_path / "one", shared(b2))
    assert one.keep(AVATAR, job, made(job, 0))
    uploads_are_done()
    calls = len(b2.calls)
    assert one.keep(AVATAR, job, made(job, 0))
    uploads_are_done()
    assert len(b2.calls) == calls


def test_a_damaged_shared_file_is_ignored(b2: FakeB2, tmp_path: Path) -> None:
    job, one = opened(), cache(tmp_path / "one", shared(b2))
    one.keep(AVATAR, job, made(job, 0))
    uploads_are_done()
    [name] = b2.files
    stored = b2.files[name]
    b2.files[name] = replace(stored, content=stored.content[:-1] + b"\xff")
    other = cache(tmp_path / "other", shared(b2))
    assert other.load(AVATAR, job, job.plan.blocks[0], None, within_s=20) is None
    assert other.find(AVATAR, job, frozenset()) == {}


def test_a_damaged_local_file_is_replaced_by_the_shared_one(b2: FakeB2, tmp_path: Path) -> None:
    job, one = opened(), cache(tmp_path / "one", shared(b2))
    one.keep(AVATAR, job, made(job, 0))
    uploads_are_done()
    [path] = (tmp_path / "one").rglob("*.block")
    path.write_bytes(path.read_bytes()[:-1])
    found = one.load(AVATAR, job, job.plan.blocks[0], None, within_s=20)
    assert found is not None
    np.testing.assert_array_equal(found.appearance, made(job, 0).appearance)


def test_a_download_that_is_slower_than_the_work_is_given_up(
    b2: FakeB2, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shared(b2)
    b2.faults["download_file"].append(fake_b2.hang)
    b2.files[f"avatar/outputs/avatars/{AVATAR}/a.block"] = fake_b2.Stored(b"x", "a/b", False)
    assert copy.names(AVATAR) == {"a.block"}  # it has logged in
    uploads_are_done()
    assert copy.get(AVATAR, "a.block", within_s=0.1) is None
    until(lambda: b2.count("download_file") == 1, "the request for the file has not come")
    [record] = [each for each in caplog.records if "left alone" in each.message]
    assert record.__dict__["fault"] == "DeadlinePassedError"
    calls = len(b2.calls)
    assert copy.get(AVATAR, "a.block", within_s=0.1) is None
    assert copy.names(AVATAR) == frozenset()
    assert len(b2.calls) == calls  # it is left alone for a while


def test_a_copy_that_failed_is_used_again_later(b2: FakeB2) -> None:
    now = [0.0]
    settings = B2Settings(fake_b2.KEY_ID, fake_b2.APP_KEY, fake_b2.BUCKET, realm=b2.url)
    copy = SharedAvatars(B2Bucket(settings), lambda: now[0])
    b2.faults["b2_list_file_names"].append(BUSY)
    b2.files[f"avatar/outputs/avatars/{AVATAR}/a.block"] = fake_b2.Stored(b"x", "a/b", False)
    assert copy.names(AVATAR) == frozenset()
    assert copy.names(AVATAR) == frozenset()
    now[0] += PAUSE_S
    assert copy.names(AVATAR) == {"a.block"}


def test_a_key_that_may_not_list_costs_nothing_but_the_shared_copy(
    b2: FakeB2, tmp_path: Path
) -> None:
    b2.capabilities = ["listBuckets", "writeFiles"]
    job, one = opened(), cache(tmp_path / "one", shared(b2))
    assert one.shared_names(AVATAR) == frozenset()
    assert one.keep(AVATAR, job, made(job, 0))
    assert one.load(AVATAR, job, job.plan.blocks[0], None, within_s=20) is not None


def test_an_upload_that_fails_leaves_nothing_half_done(b2: FakeB2, tmp_path: Path) -> None:
    job, one = opened(), cache(tmp_path / "one", shared(b2))
    b2.faults["upload_part"] += [BUSY] * 8
    assert one.keep(AVATAR, job, made(job, 0))
    uploads_are_done()
    assert b2.files == {} and b2.unfinished == {}
    assert set(one.find(AVATAR, job, frozenset())) == {0}


def test_secrets_are_in_no_log(
    b2: FakeB2, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "serve_app")
    b2.faults["b2_list_file_names"].append(BUSY)
    shared(b2).names(AVATAR)
    text = "\n".join(str(record.__dict__) for record in caplog.records)
    assert "left alone" in text
    assert not [secret for secret in (*b2.all_tokens, fake_b2.APP_KEY) if secret in text]
