"""Trims and sync modes: which frames are shown in which order, and what is heard."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from musetalk_pipeline.artifacts import ColourTags, Picture, SourceVideo, SpeechAudio
from musetalk_pipeline.avatars.identity import AvatarTools, block_name, longer_block
from musetalk_pipeline.errors import AudioTooShort, InvalidOptions
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import FrameOrder, cut_segment, plan_frames, plan_order
from musetalk_pipeline.time_options import TimeOptions
from musetalk_pipeline.timeline import Sounds, Timeline, lay_out
from musetalk_pipeline.video_spans import SpanAudio, VideoSpan
from serve_app.contract.requests import AvatarCreate, JobRequest, Params
from serve_app.jobs.submissions import new_job

FPS = Fraction(25)
WAYS = st.sampled_from(["bounce", "loop", "stretch"])


def timeline(frames: int, seconds: float, *, rate: Fraction = FPS, **options: Any) -> Timeline:
    """Lay a sound of so many seconds over a video of so many frames."""
    duration_s = float(frames / rate)
    source = SourceVideo(Path("v"), "aa", 1, 64, 64, rate, frames, duration_s, ColourTags())
    n_samples = round(seconds * 16_000)
    audio = SpeechAudio(Path("p"), Path("t"), "bb", 1, n_samples, seconds)
    return lay_out(source, Sounds(audio), JobOptions().with_choices(options))


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


@pytest.mark.parametrize("mode", ["bounce", "loop", "cut_off", "silence", "remap"])
def test_a_picture_lasts_as_long_as_the_sound(mode: str) -> None:
    assert shown(timeline(1, 0.4, sync_mode=mode)) == [0] * 10


def test_silence_pads_the_sound_to_the_last_frame() -> None:
    assert heard(timeline(50, 1.0, sync_mode="silence")) == [(0, 16_000), None]
    assert timeline(50, 1.0, sync_mode="silence").sound[1].n_samples == 16_000
    assert heard(timeline(50, 3.0, sync_mode="silence")) == []


def test_trims_choose_the_nearest_frames_and_samples() -> None:
    laid = timeline(100, 4.0, video_start_s=1.0, video_end_s=2.02, audio_start_s=0.5)
    assert (laid.order.first, laid.order.end) == (25, 51)  # 50.5 frames
    assert laid.order.n_output == 87  # of 3.5 s
    assert heard(laid) == [(8_000, 64_000)]
    ntsc = timeline(300, 1.0, rate=Fraction(30000, 1001), video_start_s=5.005)
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


SPAN = {"start_s": 1.0, "end_s": 2.0, "audio": {}}


@pytest.mark.parametrize(
    ("spans", "sentence"),
    [
        ([SPAN, {**SPAN, "start_s": 1.5, "end_s": 3}], "1 to 2 s and 1.5 to 3 s overlap"),
        ([{**SPAN, "end_s": 1.0}], "it is empty: 1 is not after 1"),
        ([{**SPAN, "audio": None}], "No entry of `segments` has audio"),
        (
            [{**SPAN, "audio": {"start_s": 2, "end_s": 1}}],
            "the audio ends at 1, which is not after",
        ),
        (
            [{**SPAN, "audio": {"url": "silence:"}}],
            "use an http, https, upload or file address as `url`",
        ),
        ([{"start_s": 1.0, "end_s": 2.0}], "Field required"),
        ([{**SPAN, "audio": {"start": 1}}], "Unexpected keyword argument"),
        ([{**SPAN, "start_s": k, "end_s": k + 1} for k in range(101)], "at most 100 are accepted"),
    ],
)
def test_spans_that_cannot_be_right_are_refused(spans: list[Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Params.model_validate({"segments": spans})


@pytest.mark.parametrize(
    ("spans", "more", "sentence"),
    [
        ([(3.0, 5.0)], {}, "`segments: end_s` is 5, but the video lasts 4.00 s"),
        ([(1.0, 2.0)], {"video_end_s": 1.6}, r"1 to 2 s is not within .* used, 0 to 1.6 s"),
        ([(1.0, 1.01)], {}, "1 to 1.01 s holds no frame"),
        ([(1.0, 2.0)], {"fps": 30.0}, "cannot be combined with `fps`"),
        ([(1.0, 2.0)], {"frame_rate": "whole"}, "cannot be combined with `frame_rate`"),
    ],
)
def test_spans_that_do_not_fit_the_video_are_refused(
    spans: list[tuple[float, float]], more: dict[str, Any], sentence: str
) -> None:
    segments = tuple(VideoSpan(*edges, SpanAudio()) for edges in spans)
    with pytest.raises(InvalidOptions, match=sentence):
        timeline(100, 2.0, segments=segments, **more)


def test_only_the_blocks_of_spans_are_prepared_and_they_are_those_of_the_whole_video() -> None:
    segments = (VideoSpan(2.0, 5.2, SpanAudio()), VideoSpan(0.2, 0.6, SpanAudio()))
    laid = timeline(250, 2.0, segments=segments, sync_mode="loop")
    plan = plan_order(laid.order, FPS, 2.0, laid.drawn)
    assert [(block.start, block.end) for block in plan.blocks] == [
        (5, 15), (50, 100), (100, 130),
    ]  # fmt: skip
    assert [frame for one in plan.segments for frame in one.source_frames()] == list(range(250))
    drawn = [one for one in plan.segments if one.block is not None]
    assert [(one.start, one.end, one.block) for one in drawn] == [
        (5, 15, 0), (50, 100, 1), (100, 130, 2),
    ]  # fmt: skip
    assert plan.n_drawn == 90 and max(len(one) for one in plan.segments) <= 50
    assert list(laid.searched) == plan.prepared
    assert "sync_mode has no effect" in laid.warnings[0]


def test_the_sound_of_spans_lies_between_the_sound_of_the_video() -> None:
    """A video of 4 s whose sound begins 0.1 s late; 0.3 s of speech in a span of 1 s."""
    fps, source = FPS, SourceVideo(Path("v"), "aa", 1, 64, 64, FPS, 100, 4.0, ColourTags())
    sounds = [SpeechAudio(Path("p"), Path("t"), name, 1, 64_000, 4.0) for name in ("job", "own")]
    span = VideoSpan(1.0, 2.0, SpanAudio(start_s=0.5, end_s=0.8))
    options = JobOptions().with_choices({"segments": (span,)})
    laid = lay_out(source, Sounds(sounds[0], {}, sounds[1], Fraction(1, 10)), options)
    assert [(p.source and p.source.sha256, *p.span, p.is_spoken) for p in laid.sound] == [
        (None, 0, 1_600, False),
        ("own", 0, 14_400, False),
        ("job", 8_000, 12_800, True),
        (None, 0, 11_200, True),
        ("own", 30_400, 62_400, False),
    ]
    assert sum(part.n_samples for part in laid.sound) == 100 * 16_000 / fps


def test_a_job_whose_segments_were_signed_again_is_the_same_job() -> None:
    def job(url: str) -> str:
        params = {"segments": [{**SPAN, "audio": {"url": url}}], "crf": 20}
        request = JobRequest(musetalk_job_id="a", video_url="h", audio_url="h", params=params)
        stored = new_job(request, None, "c")
        assert Params.model_validate(stored.params) == request.params
        return stored.content_key

    assert job("http://h/a.wav?signature=1") == job("http://h/a.wav?signature=2")
    assert job("http://h/a.wav") != job("http://h/b.wav")


def test_a_span_without_audio_is_still_one_when_it_is_stored() -> None:
    params = Params.model_validate(
        {"segments": [SPAN, {**SPAN, "start_s": 2, "end_s": 3, "audio": None}]}
    )
    assert Params.model_validate(params.as_json()) == params


def test_a_span_that_ends_inside_a_block_uses_the_kept_one_of_the_whole_video() -> None:
    """As the last block of a short sound does; spans may end inside several."""
    tools = AvatarTools("warp", "1", "mesh", "landmarks", None, "frame")
    picture = Picture(64, 64, 64, 64, 0, 0, None, ColourTags())
    whole, options = plan_frames(250, 250, FPS), JobOptions()
    kept = [block_name(block, whole, picture, options) for block in whole.blocks]
    order = FrameOrder("bounce", 0, 250, 250)
    spans = plan_order(order, FPS, drawn=(range(50, 80), range(100, 160)))
    found = [
        block_name(block, spans, picture, options) in kept
        or longer_block(kept, block, spans, picture, options, tools) is not None
        for block in spans.blocks
    ]
    assert [(block.start, block.end) for block in spans.blocks] == [
        (50, 80),
        (100, 150),
        (150, 160),
    ]
    assert found == [True] * 3
