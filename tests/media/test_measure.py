"""The size of an output before a job is opened is the size that the opened job has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from musetalk_pipeline.errors import InvalidAudio, InvalidOptions
from musetalk_pipeline.face_choice import FaceAtPoint
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.measure import measure_job
from musetalk_pipeline.options import FrameOptions, JobOptions, MediaLimits, SpeechOptions
from musetalk_pipeline.stages import BlockSize, open_job
from musetalk_pipeline.time_options import TimeOptions
from musetalk_pipeline.video_spans import SpanAudio, VideoSpan
from tests.media.test_chosen_face import CUTS, WOMAN, Kept, choosing
from tests.media.two_people import write

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


SPAN = VideoSpan(0.2, 0.5, SpanAudio())
WORK = {
    "plain": JobOptions(),
    "spans": JobOptions(time=TimeOptions(segments=(SPAN,))),
    "loop": JobOptions(time=TimeOptions(sync_mode="loop")),
}


@pytest.mark.parametrize(
    "name",
    ["spans", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "loop"))],
)
def test_what_there_is_to_do_is_what_is_planned(clip, speech, tools, tmp_path, name) -> None:
    files, options, blocks = JobFiles(clip(frames=20), speech(1.3)), WORK[name], BlockSize(0.2)
    kept_blocks = {0, 2}
    size = measure_job(
        *(files, tmp_path, options, LIMITS),
        block_size=blocks,
        kept_blocks=lambda job: kept_blocks,
    )
    plan = open_job(files, tmp_path, options, LIMITS, tools.detector, block_size=blocks).plan
    assert size.drawn == size.to_draw == plan.n_drawn == {"spans": 8}.get(name, 32)
    assert size.avatar == len(plan.prepared) == {"spans": 8}.get(name, 20)
    assert size.kept == sum(len(block) for block in plan.blocks if block.index in kept_blocks)
    assert 0 < size.kept < size.avatar and size.followed == 0


def test_frames_in_silence_are_not_counted_as_drawn_if_the_mouth_rests(
    clip, speech, tmp_path
) -> None:
    spoken, rate = soundfile.read(speech(2.0))
    quiet = tmp_path / "quiet.wav"
    soundfile.write(quiet, np.concatenate([spoken, np.zeros(2 * rate)]), rate)
    files = JobFiles(clip(frames=20), quiet)
    resting = JobOptions(speech=SpeechOptions(rest_in_silence=True))
    drawn = [measure_job(files, tmp_path, o, LIMITS).drawn for o in (resting, JobOptions())]
    # The mouth closes a little after the last word, and there may be pauses before.
    assert 30 <= drawn[0] <= 58 and drawn[1] == 100


def test_a_person_that_has_been_followed_need_not_be_followed_again(
    speech, tools, tmp_path
) -> None:
    video, known = write(tmp_path / "cuts.mp4", CUTS), Kept()
    options = choosing(FaceAtPoint(WOMAN))

    def followed(seconds: float) -> int:
        files = JobFiles(video, speech(seconds))
        return measure_job(files, tmp_path, options, LIMITS, known_surveys=known).followed

    before = followed(1.0)
    job = open_job(
        *(JobFiles(video, speech(1.0)), tmp_path, options, LIMITS, tools.detector),
        known_surveys=known,
    )
    assert before == job.followed == 25
    assert (followed(1.0), followed(0.6), followed(1.28)) == (0, 0, 32)


def test_what_a_job_would_be_refused_for_is_refused(clip, speech, tmp_path: Path) -> None:
    video = clip(frames=20)
    with pytest.raises(InvalidAudio):
        measure_job(JobFiles(video, video), tmp_path, JobOptions(), LIMITS)
    wrong = JobOptions(frame=FrameOptions(fps=500.0))
    with pytest.raises(InvalidOptions):
        measure_job(JobFiles(video, speech(0.4)), tmp_path, wrong, LIMITS)
