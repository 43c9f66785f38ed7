"""The size of an output before a job is opened is the size that the opened job has."""

from __future__ import annotations

from pathlib import Path

import pytest

from musetalk_pipeline.errors import InvalidAudio, InvalidOptions
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.measure import measure_job
from musetalk_pipeline.options import FrameOptions, JobOptions, MediaLimits
from musetalk_pipeline.stages import BlockSize, open_job
from musetalk_pipeline.time_options import TimeOptions

LIMITS = MediaLimits()


OPTIONS = {
    "crop": JobOptions(frame=FrameOptions(resolution="120p", aspect_ratio="1:1", fit="crop")),
    "slow": JobOptions(frame=FrameOptions(resolution="200x100", fit="blur", fps=12.5)),
    "cut_off": JobOptions(time=TimeOptions(sync_mode="cut_off", video_start_s=0.2)),
    "loop": JobOptions(time=TimeOptions(sync_mode="loop", audio_end_s=0.9)),
    "silence": JobOptions(time=TimeOptions(sync_mode="silence")),
    "remap": JobOptions(time=TimeOptions(sync_mode="remap")),
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(JobOptions(), id="plain"),
        *(pytest.param(one, marks=pytest.mark.slow, id=name) for name, one in OPTIONS.items()),
    ],
)
def test_what_is_measured_is_what_is_made(clip, speech, tools, tmp_path, options) -> None:
    files = JobFiles(clip(frames=20), speech(1.3))
    blocks = BlockSize(0.4)
    size = measure_job(files, tmp_path, options, LIMITS, block_size=blocks)
    job = open_job(files, tmp_path, options, LIMITS, tools.detector, block_size=blocks)
    assert size.frames == job.plan.n_output
    assert size.fps == job.plan.fps
    assert (size.width, size.height) == (job.picture.width, job.picture.height)
    assert size.first_frames == len(job.plan.blocks[0])


def test_what_a_job_would_be_refused_for_is_refused(clip, speech, tmp_path: Path) -> None:
    video = clip(frames=20)
    with pytest.raises(InvalidAudio):
        measure_job(JobFiles(video, video), tmp_path, JobOptions(), LIMITS)
    wrong = JobOptions(frame=FrameOptions(fps=500.0))
    with pytest.raises(InvalidOptions):
        measure_job(JobFiles(video, speech(0.4)), tmp_path, wrong, LIMITS)
