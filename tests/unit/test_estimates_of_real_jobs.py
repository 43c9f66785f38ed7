"""Estimates from the receipts of jobs that a running application did."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.estimates.estimator import Estimator
from serve_app.estimates.forecast import PoolRunners, Runners
from serve_app.estimates.past_jobs import PastJob, past_job

# Of `python benchmarks/estimate.py --seconds 6`, two busy cores, 2026-11-26: three whole jobs, and
# then one of each of these kinds.
RECEIPTS: dict[str, dict[str, Any]] = json.loads(
    """
{
"whole_1": {
  "frames": 150, "faces": 150, "wall_s": 7.07, "avatar_blocks": {"made": 3, "cached": 0},
  "stage_frames": {"prepare": 150, "encode": 150, "listen": 150, "generate": 150, "compose": 150},
  "stage_s": {"download": 0.01, "validation": 1.11, "prepare": 5.33, "inference": 1.53,
    "listen": 0.05, "compose": 7.52, "stitch": 0.06, "upload": 0.01},
  "pools": [{"pool": "cpu", "frames": 150, "work_s": 1.527, "idle_s": 1.185, "lost_s": 0.0,
    "encode_s": 0.119}]
},
"whole_2": {
  "frames": 150, "faces": 150, "wall_s": 5.265, "avatar_blocks": {"made": 3, "cached": 0},
  "stage_frames": {"prepare": 150, "encode": 150, "listen": 150, "generate": 150, "compose": 150},
  "stage_s": {"download": 0.0, "validation": 0.67, "prepare": 5.72, "inference": 1.4,
    "listen": 0.0, "compose": 4.87, "stitch": 0.05, "upload": 0.01},
  "pools": [{"pool": "cpu", "frames": 150, "work_s": 1.403, "idle_s": 1.395, "lost_s": 0.0,
    "encode_s": 0.151}]
},
"whole_3": {
  "frames": 150, "faces": 150, "wall_s": 5.782, "avatar_blocks": {"made": 3, "cached": 0},
  "stage_frames": {"prepare": 150, "encode": 150, "listen": 150, "generate": 150, "compose": 150},
  "stage_s": {"download": 0.01, "validation": 0.6, "prepare": 5.28, "inference": 1.26,
    "listen": 0.0, "compose": 7.74, "stitch": 0.04, "upload": 0.0},
  "pools": [{"pool": "cpu", "frames": 150, "work_s": 1.262, "idle_s": 1.506, "lost_s": 0.0,
    "encode_s": 0.072}]
},
"kept": {
  "frames": 150, "faces": 150, "wall_s": 3.533, "avatar_blocks": {"made": 0, "cached": 3},
  "stage_frames": {"load": 150, "listen": 150, "generate": 150, "compose": 150},
  "stage_s": {"download": 0.01, "validation": 0.22, "load": 0.14, "listen": 0.0,
    "inference": 1.08, "compose": 5.3, "stitch": 0.03, "upload": 0.01},
  "pools": [{"pool": "cpu", "frames": 150, "work_s": 1.077, "idle_s": 0.093, "lost_s": 0.0,
    "encode_s": 0.0}]
},
"segments": {
  "frames": 45, "faces": 45, "wall_s": 3.57, "avatar_blocks": {"made": 1, "cached": 0},
  "stage_frames": {"compose": 150, "prepare": 45, "encode": 45, "listen": 45, "generate": 45},
  "stage_s": {"download": 0.0, "validation": 0.66, "compose": 5.26, "prepare": 0.63,
    "inference": 0.15, "listen": 0.01, "stitch": 0.04, "upload": 0.01},
  "pools": [{"pool": "cpu", "frames": 45, "work_s": 0.155, "idle_s": 0.024, "lost_s": 0.0,
    "encode_s": 0.012}]
},
"repeated": {
  "frames": 150, "faces": 150, "wall_s": 4.012, "avatar_blocks": {"made": 1, "cached": 0},
  "stage_frames": {"prepare": 38, "encode": 38, "listen": 150, "generate": 150, "compose": 150},
  "stage_s": {"download": 0.0, "validation": 0.47, "prepare": 0.33, "inference": 0.96,
    "listen": 0.0, "compose": 5.03, "stitch": 0.03, "upload": 0.0},
  "pools": [{"pool": "cpu", "frames": 150, "work_s": 0.963, "idle_s": 0.055, "lost_s": 0.0,
    "encode_s": 0.01}]
}
}
"""
)
RUNNERS = Runners((PoolRunners("cpu", 1, 100.0),), 2, 2)


def done(kind: str) -> PastJob:
    job = past_job({"receipt": RECEIPTS[kind], "width": 640, "height": 360})
    assert job is not None
    return job


@pytest.mark.parametrize("kind", ["kept", "segments", "repeated"])
def test_the_estimate_of_a_job_that_does_less_is_nearer_to_what_it_took(kind: str) -> None:
    """The other estimate is the one of whole jobs, from which both are learnt."""
    known, job = Estimator(lambda: RUNNERS), done(kind)
    for number in (1, 2, 3):
        known.past.add({"receipt": RECEIPTS[f"whole_{number}"], "width": 640, "height": 360})
    made, whole = (
        known.estimate(length, 0).seconds for length in (job.length, done("whole_1").length)
    )
    assert job.length.frames == done("whole_1").length.frames
    assert made < whole
    assert abs(made - job.wall_s) < 0.7 * abs(whole - job.wall_s)


def test_the_next_job_with_a_kept_avatar_is_estimated_better_than_the_first() -> None:
    known, job = Estimator(lambda: RUNNERS), done("kept")
    for number in (1, 2, 3):
        known.past.add({"receipt": RECEIPTS[f"whole_{number}"], "width": 640, "height": 360})
    first = known.estimate(job.length, 0).seconds
    known.past.add({"receipt": RECEIPTS["kept"], "width": 640, "height": 360})
    second = known.estimate(job.length, 0).seconds
    assert abs(second - job.wall_s) < abs(first - job.wall_s)
