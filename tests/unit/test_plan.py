"""Which output frame shows which source frame, and how the job is cut up."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_pipeline.plan import (
    SAMPLE_RATE,
    count_output_frames,
    cut_segment,
    plan_frames,
    playing_fps,
    source_of,
    speech_fps,
)

RATES = st.sampled_from(
    [Fraction(25), Fraction(24), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)]
)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [
        (1.2, Fraction(25), 30),
        (1.16, Fraction(25), 28),  # 28.999… in double precision, as the reference evaluates it
        (31.3, Fraction(25), 782),
        (31.3, Fraction(24), 751),
        (31.3, Fraction(30), 939),
        (31.3, Fraction(30000, 1001), 938),  # the reference: 907, for it plays 29 frames a second
        (31.3, Fraction(50), 1565),  # the reference exits here
    ],
)
def test_output_frames_are_the_whole_frames_that_the_audio_covers(seconds, fps, frames):
    assert count_output_frames(round(seconds * SAMPLE_RATE), fps) == frames


@pytest.mark.parametrize(
    ("wanted", "fps"),
    [
        (None, Fraction(24)),
        (25, Fraction(25)),
        (29.97, Fraction(2997, 100)),
        (29.97003, Fraction(30000, 1001)),
        (23.976024, Fraction(24000, 1001)),
    ],
)
def test_the_source_is_played_at_the_rate_asked_for(wanted, fps):
    assert playing_fps(Fraction(24), wanted) == fps


@pytest.mark.parametrize(
    ("fps", "whole"),
    [
        (Fraction(30000, 1001), 29),
        (Fraction(24000, 1001), 23),
        (Fraction(25), 25),
        (Fraction(1, 2), Fraction(1, 2)),
    ],
)
def test_a_whole_rate_is_the_references(fps, whole):
    """31.3 s are 907 frames at 29.97 and 719 at 23.976 there (Q7)."""
    assert speech_fps(fps, "whole") == whole
    assert speech_fps(fps, "exact") == fps


def test_ping_pong_shows_both_ends_twice():
    assert [source_of(i, 3) for i in range(8)] == [0, 1, 2, 2, 1, 0, 0, 1]


def test_a_single_source_frame_is_shown_for_ever():
    plan = plan_frames(1, 5, Fraction(25))
    assert [f for s in plan.segments for f in s.source_frames()] == [0] * 5
    assert len(plan.blocks) == 1


@given(st.integers(1, 300), st.integers(1, 900), RATES, st.floats(0.05, 3.0))
def test_segments_cover_every_output_frame_once_and_in_order(n_source, n_output, fps, block_s):
    plan = plan_frames(n_source, n_output, fps, block_s)
    shown = [frame for segment in plan.segments for frame in segment.source_frames()]
    assert shown == [source_of(i, n_source) for i in range(n_output)]
    assert [s.start for s in plan.segments[1:]] == [s.end for s in plan.segments[:-1]]
    assert [s.index for s in plan.segments] == list(range(len(plan.segments)))


@given(st.integers(1, 300), st.integers(1, 900), RATES, st.floats(0.05, 3.0))
def test_a_segment_stays_within_its_block(n_source, n_output, fps, block_s):
    plan = plan_frames(n_source, n_output, fps, block_s)
    for segment in plan.segments:
        block = plan.blocks[segment.block]
        assert all(block.start <= frame < block.end for frame in segment.source_frames())


@given(st.integers(1, 300), st.integers(1, 900), RATES)
def test_only_the_frames_that_the_audio_reaches_are_prepared(n_source, n_output, fps):
    plan = plan_frames(n_source, n_output, fps)
    assert [f for b in plan.blocks for f in range(b.start, b.end)] == list(
        range(min(n_source, n_output))
    )


def test_nothing_to_plan_is_refused():
    with pytest.raises(ValueError, match="nothing to plan"):
        plan_frames(10, 0, Fraction(25))


def test_a_short_source_makes_long_segments():
    plan = plan_frames(1, 250, Fraction(25), 2.0)
    assert [len(segment) for segment in plan.segments] == [50] * 5
    plan = plan_frames(3, 100, Fraction(25), 2.0)
    assert plan.segments[0].source_frames()[:8] == [0, 1, 2, 2, 1, 0, 0, 1]
    assert len(plan.segments) == 2


@given(n_source=st.integers(1, 300), n_output=st.integers(2, 900), share=st.floats(0.01, 0.99))
def test_the_parts_of_a_segment_show_what_it_showed(n_source, n_output, share):
    """Segments are cut at the end of a job; every frame is still there, in its block."""
    for segment in plan_frames(n_source, n_output, Fraction(25)).segments:
        frames = round(len(segment) * share)
        if not 0 < frames < len(segment):
            continue
        first, second = cut_segment(segment, frames)
        assert (first.start, first.end, second.end) == (segment.start, second.start, segment.end)
        assert first.source_frames() + second.source_frames() == segment.source_frames()
        assert first.block == second.block == segment.block


@pytest.mark.parametrize("frames", [0, 50, -1])
def test_a_segment_is_not_cut_at_its_ends(frames):
    [segment, *_] = plan_frames(100, 100, Fraction(25)).segments
    with pytest.raises(ValueError, match="not a part"):
        cut_segment(segment, frames)
