"""Media from inside the worker: the kept video of an avatar, and silence for jobs without sound."""

from __future__ import annotations

import hashlib
import wave
from fractions import Fraction
from pathlib import Path

import pytest

from musetalk_pipeline.errors import DownloadFailed, InvalidOptions, InvalidVideo
from musetalk_pipeline.options import FrameOptions, JobOptions, MediaLimits
from musetalk_pipeline.plan import count_output_frames, plan_frames
from serve_app.avatars.about import About, write_about
from serve_app.avatars.local import LocalAvatars
from serve_app.avatars.shelf import AvatarShelf
from serve_app.graph.inside_media import fetch_kept_video, make_silence
from tests.conftest import ClipFactory

ONE = "1" * 32
VIDEO = b"the bytes of a video"


def samples(path: Path) -> int:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, 16_000)
        data = file.readframes(file.getnframes())
        assert not any(data)
        return file.getnframes()


def test_silence_is_as_long_as_wanted(tmp_path: Path) -> None:
    target = tmp_path / "audio"
    digest = make_silence("silence:1.5", tmp_path / "v", target, JobOptions(), MediaLimits())
    assert samples(target) == 24_000
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()


def test_silence_longer_than_an_input_may_be_is_refused(tmp_path: Path) -> None:
    limits = MediaLimits(max_duration_s=10)
    with pytest.raises(InvalidOptions, match="duration_s"):
        make_silence("silence:11", tmp_path / "v", tmp_path / "audio", JobOptions(), limits)


@pytest.mark.parametrize("fps", [None, 5.0])
def test_silence_reaches_every_frame_of_the_video(
    tmp_path: Path, clip: ClipFactory, fps: float | None
) -> None:
    options = JobOptions(frame=FrameOptions(fps=fps))
    target = tmp_path / "audio"
    make_silence("silence:", clip(frames=30), target, options, MediaLimits())
    assert count_output_frames(samples(target), Fraction(fps or 25)) >= 30


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v").write_text("a text, and not a video" * 100)
    with pytest.raises(InvalidVideo):
        make_silence("silence:", tmp_path / "v", tmp_path / "a", JobOptions(), MediaLimits())


def test_frames_that_are_reached_are_shown_once() -> None:
    plan = plan_frames(120, 400, Fraction(25)).played_once()
    assert plan.n_output == 120
    frames = [frame for segment in plan.segments for frame in segment.source_frames()]
    assert frames == list(range(120))
    assert plan.blocks == plan_frames(120, 120, Fraction(25)).blocks


@pytest.fixture
def local(tmp_path: Path) -> LocalAvatars:
    """Avatars, one of which has a kept video."""
    source = tmp_path / "scratch.mp4"
    source.write_bytes(VIDEO)
    local = LocalAvatars(tmp_path / "avatars", 1e6, 1e6)
    digest = hashlib.sha256(VIDEO).hexdigest()
    write_about(local, ONE, About(digest, "warp", "2", "mesh", 2, 2, 25.0, 1, 0.04))
    assert local.write_copy(ONE, "video", source)
    source.unlink()  # as the attempt's scratch is
    return local


def test_a_kept_video_comes_back(local: LocalAvatars, tmp_path: Path) -> None:
    target = tmp_path / "video"
    digest = fetch_kept_video(AvatarShelf(local), f"avatar:{ONE}", target)
    assert digest == hashlib.sha256(VIDEO).hexdigest()
    assert target.read_bytes() == VIDEO
    target.unlink()
    assert "video" in local.names(ONE)


def test_a_damaged_video_is_removed_and_not_used(local: LocalAvatars, tmp_path: Path) -> None:
    (tmp_path / "avatars" / ONE / "video").write_bytes(VIDEO + b"?")
    with pytest.raises(DownloadFailed, match="not kept"):
        fetch_kept_video(AvatarShelf(local), f"avatar:{ONE}", tmp_path / "video")
    assert not (tmp_path / "video").exists()
    assert "video" not in local.names(ONE)


def test_an_avatar_that_is_not_here_is_said(local: LocalAvatars, tmp_path: Path) -> None:
    for shelf, avatar_id in ((AvatarShelf(local), "2" * 32), (None, ONE)):
        with pytest.raises(DownloadFailed, match=avatar_id):
            fetch_kept_video(shelf, f"avatar:{avatar_id}", tmp_path / "video")
