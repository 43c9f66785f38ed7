"""What scaling learns from reports: speeds of GPU classes, and lengths of jobs."""

from __future__ import annotations

import pytest

from orchestrator.scaling.learnt import (
    ENOUGH_JOBS,
    UNKNOWN_FRAMES,
    Speed,
    expected_frames,
    finish_by,
    learn_speed,
)


def test_the_speed_of_a_class_follows_the_reports_and_begins_with_the_configured_one():
    speeds = {}
    assert Speed().frames_per_s(prior=20.0) == 20.0
    for _ in range(200):
        speeds = learn_speed(speeds, "RTX-3090", frames=3000, seconds=60)
    assert speeds["RTX-3090"].frames_per_s(prior=20.0) == pytest.approx(50, rel=0.1)
    for _ in range(200):
        speeds = learn_speed(speeds, "RTX-3090", frames=1500, seconds=60)
    assert speeds["RTX-3090"].frames_per_s(prior=20.0) == pytest.approx(25, rel=0.1)
    assert learn_speed(speeds, "RTX-3090", frames=0, seconds=5) == speeds


def test_unknown_frames_are_estimated_from_comparable_jobs():
    own, all_jobs = [100.0] * ENOUGH_JOBS, [300.0, 500.0]
    assert expected_frames(42, own, all_jobs) == 42
    assert expected_frames(None, own, all_jobs) == 100
    assert expected_frames(None, own[1:], all_jobs) == 400
    assert expected_frames(None, (), ()) == UNKNOWN_FRAMES


def test_a_job_should_finish_by_its_deadline_or_after_the_target_wait():
    assert finish_by(100.0, 150.0, 360.0) == 150.0
    assert finish_by(100.0, None, 360.0) == 460.0
