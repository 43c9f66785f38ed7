"""Trims and sync modes: which frames are shown in which order, and what is heard."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from musetalk_pipeline.artifacts import ColourTags, SourceVideo, SpeechAudio
from musetalk_pipeline.errors import AudioTooShort, InvalidOptions
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import FrameOrder, cut_segment, plan_frames, plan_order
from musetalk_pipeline.time_options import TimeOptions
from musetalk_pipeline.timeline import Timeline, lay_out
from serve_app.contract.requests import AvatarCreate, Params

FPS = Fraction(25)
WAYS = st.sampled_from(["bounce", "loop", "stretch"])


def timeline(
    frames: int, seconds: float, *, fps: Fraction = FPS, **options: str | float
) -> Timeline:
    """Lay a sound of so many seconds over a video of so many frames."""
    duration_s = float(frames / fps)
    source = SourceVideo(Path("v"), "aa", 1, 64, 64, fps, frames, duration_s, ColourTags())
    n_samples = round(seconds * 16_000)
    audio = SpeechAudio(Path("p"), Path("t"), "bb", 1, n_samples, seconds)
    return lay_out(source, audio, JobOptions().with_choices(options))


def shown(laid: Timeline) -> list[int]:
    """Return the source frame of each output frame, by way of the plan."""
    segments = plan_order(laid.order, FPS, block_s=0.2).segments
    return [frame for segment in segments for frame in segment.source_frames()]


def heard(laid: Timeline) -> list[tuple[int, int] | None]:
    """Return the samples of each part of the sound, None for silence."""
    return [part.span if part.source else None for part in laid.sound]


BACK_AND_FORTH = [0, 1, 2, 3, 3, 2, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("mode", "longer_sound", "shorter_sound"),
    [
        ("bounce", BACK_AND_FORTH, [0, 1]),
        ("loop", [0, 1, 2, 3, 0, 1, 2, 3, 0, 1], [0, 1]),
        ("cut_off", [0, 1, 2, 3], [0, 1]),
        ("silence", BACK_AND_FORTH, [0, 1, 2, 3]),
        ("remap", [0, 0, 0, 1, 1, 2, 2, 2, 3, 3], [0, 2]),
    ],
)
def test_each_mode_shows_the_frames_that_its_name_says(
    mode: str, longer_sound: list[int], shorter_sound: list[int]
) -> None:
    """Four frames of 40 ms, with 0.4 s and with 0.08 s of sound."""
    assert shown(timeline(4, 0.4, sync_mode=mode)) == longer_sound
    assert shown(timeline(4, 0.08, sync_mode=mode)) == shorter_sound


def test_nothing_chosen_is_bounce_and_leaves_the_sound_as_it_is() -> None:
    assert timeline(4, 0.4) == timeline(4, 0.4, sync_mode="bounce")
    assert timeline(4, 0.4).sound == ()


def test_silence_pads_the_sound_to_the_last_frame() -> None:
    assert heard(timeline(50, 1.0, sync_mode="silence")) == [(0, 16_000), None]
    assert timeline(50, 1.0, sync_mode="silence").sound[1].n_samples == 16_000
    assert heard(timeline(50, 3.0, sync_mode="silence")) == []


def test_trims_choose_the_nearest_frames_and_samples() -> None:
    laid = timeline(100, 4.0, video_start_s=1.0, video_end_s=2.02, audio_start_s=0.5)
    assert (laid.order.first, laid.order.end) == (25, 51)  # 50.5 frames
    assert laid.order.n_output == 87  # of 3.5 s
    assert heard(laid) == [(8_000, 64_000)]
    ntsc = timeline(300, 1.0, fps=Fraction(30000, 1001), video_start_s=5.005)
    assert ntsc.order.first == 150


def test_an_end_that_was_rounded_up_is_the_end() -> None:
    laid = timeline(100, 2.0, video_end_s=4.08, audio_end_s=2.05)
    assert (laid.order.end, laid.sound) == (100, ())


@pytest.mark.parametrize(
    ("options", "sentence", "at_fault"),
    [
        ({"video_start_s": 4.2}, "the video lasts 4.00 s", "video"),
        ({"video_end_s": 5.0}, "the video lasts 4.00 s", "video"),
        ({"audio_start_s": 3.0}, "the audio lasts 2.00 s", "audio"),
        ({"audio_end_s": 2.5}, "the audio lasts 2.00 s", "audio"),
        ({"video_start_s": 4.0}, "not a single frame", "video"),
        ({"video_start_s": 1.0, "video_end_s": 1.01}, "not a single frame", "video"),
        ({"video_start_s": 2.0, "video_end_s": 1.0}, "after the start", "video"),
        ({"audio_start_s": 1.0, "audio_end_s": 1.0}, "after the start", "audio"),
        ({"sync_mode": "remap", "audio_end_s": 0.5}, "8.33 times as fast; at most 4", None),
    ],
)
def test_times_that_do_not_fit_the_files_are_refused(
    options: dict[str, str | float], sentence: str, at_fault: str | None
) -> None:
    with pytest.raises(InvalidOptions, match=sentence) as raised:
        timeline(100, 2.0, **options)
    assert raised.value.input == at_fault


@pytest.mark.parametrize("end_s", [0.03, 0.06])
def test_too_little_sound_is_refused(end_s: float) -> None:
    with pytest.raises(AudioTooShort):
        timeline(100, 2.0, audio_end_s=end_s)


@given(WAYS, st.integers(0, 300), st.integers(1, 300), st.integers(1, 900), st.floats(0.05, 3.0))
def test_a_plan_shows_every_output_frame_once_within_its_blocks(way, first, count, n_output, block):
    order = FrameOrder(way, first, first + count, n_output)
    plan = plan_order(order, FPS, block)
    frames = [frame for segment in plan.segments for frame in segment.source_frames()]
    assert frames == [order.source_of(at) for at in range(n_output)]
    assert all(first <= frame < first + count for frame in frames)
    assert [s.start for s in plan.segments[1:]] == [s.end for s in plan.segments[:-1]]
    most = max(1, round(block * 25))
    for segment in plan.segments:
        assert 0 < len(segment) <= most
        inside = plan.blocks[segment.block]
        assert all(inside.start <= frame < inside.end for frame in segment.source_frames())
    covered = [frame for each in plan.blocks for frame in range(each.start, each.end)]
    assert covered == list(order.reached())
    assert all(len(each) <= most for each in plan.blocks)


@given(WAYS, st.integers(1, 90), st.integers(2, 300), st.floats(0.01, 0.99))
def test_the_parts_of_a_segment_show_what_it_showed(way, count, n_output, share):
    for segment in plan_order(FrameOrder(way, 7, 7 + count, n_output), FPS).segments:
        frames = round(len(segment) * share)
        if 0 < frames < len(segment):
            parts = cut_segment(segment, frames)
            both = [frame for part in parts for frame in part.source_frames()]
            assert both == segment.source_frames()


def test_a_trimmed_job_shares_the_blocks_of_the_whole_video() -> None:
    whole = plan_frames(250, 250, FPS)
    part = plan_order(FrameOrder("bounce", 60, 250, 150), FPS)
    spans = [(block.start, block.end) for block in part.blocks]
    assert spans == [(60, 100), (100, 150), (150, 200), (200, 210)]
    assert spans[1:3] == [(block.start, block.end) for block in whole.blocks[2:4]]


def test_a_video_stretched_over_longer_sound_repeats_its_frames_evenly() -> None:
    frames = shown(timeline(30, 4.0, sync_mode="remap"))
    lasts = [frames.count(frame) for frame in range(30)]
    assert sum(lasts) == 100 and set(lasts) == {3, 4}
    assert all(after - before in (0, 1) for before, after in pairwise(frames))


def test_a_request_with_times_that_cannot_be_right_is_refused_at_once() -> None:
    with pytest.raises(ValidationError, match=r"`video_end_s` is 1 and `video_start_s` is 2"):
        Params.model_validate({"video_start_s": 2.0, "video_end_s": 1.0})
    with pytest.raises(ValidationError, match="sync_mode"):
        Params.model_validate({"sync_mode": "freeze"})


def test_an_avatar_is_made_of_the_part_of_the_video_alone() -> None:
    """There is no sound, so nothing that concerns it may be in the way."""
    params = {"video_start_s": 1.0, "sync_mode": "remap", "audio_end_s": 0.1}
    create = AvatarCreate.model_validate({"video_url": "http://h/v", "params": params})
    options = create.request("a").options(JobOptions())
    assert options == JobOptions(time=TimeOptions(video_start_s=1.0))
