"""How large the output of a job will be, and how much there is to do, from its files alone: nothing
is decoded into pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from musetalk_pipeline.face_search import FaceSearch
from musetalk_pipeline.job_media import JobFiles, open_media
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pixels.picture import fit_picture
from musetalk_pipeline.plan import FramePlan, plan_order, playing_fps, speech_fps
from musetalk_pipeline.sound.loudness import count_spoken
from musetalk_pipeline.stages import DEFAULT_BLOCKS, BlockSize, OpenJob, block_seconds
from musetalk_pipeline.survey import KnownSurveys

KeptBlocks = Callable[[OpenJob], Collection[int]]


@dataclass(frozen=True, slots=True)
class JobSize:
    """The output of a job: frames, frames a second, and pixels. `first_frames`: of the frames, how
    many the first block has.

    What there is to do, in frames. `to_draw`: of the output, in segments that draw on a block.
    `drawn`: of those, the ones in which the mouth is expected to show. `avatar`: of the source,
    which are prepared or have been kept, and `kept`: of those, the kept ones. `followed`: of the
    source, which are read to follow a chosen person.
    """

    frames: int
    fps: Fraction
    width: int
    height: int
    first_frames: int
    to_draw: int
    drawn: int
    avatar: int
    kept: int = 0
    followed: int = 0


def measure_job(
    files: JobFiles,
    work_dir: Path,
    options: JobOptions,
    limits: MediaLimits,
    *,
    block_size: BlockSize = DEFAULT_BLOCKS,
    known_surveys: KnownSurveys | None = None,
    kept_blocks: KeptBlocks = lambda job: (),
) -> JobSize:
    """Check both files, and return how large the output will be. Faces are not searched.

    `known_surveys`: of the same video and options. `kept_blocks`: returns the indices of the blocks
    that need not be made.

    Raises:
        MediaError: the input cannot be used; the message says why. Do not send it again.
    """
    media = open_media(files, work_dir, options, limits)
    source, timeline = media.source, media.timeline
    fps = playing_fps(source.fps, options.frame.fps)
    search = FaceSearch(source, options, timeline.searched, known_surveys, None)
    known = search.known_survey(fps)
    picture = fit_picture(source, options.frame, () if known is None else known.faces)
    block_s = block_seconds(picture, fps, block_size)
    plan = plan_order(timeline.order, fps, block_s, timeline.drawn)
    track = None if known is None else known.track
    job = OpenJob(source, media.audio, picture, plan, options, track=track)
    kept = kept_blocks(job)
    return JobSize(
        plan.n_output,
        fps,
        picture.width,
        picture.height,
        first_frames(plan),
        to_draw=plan.n_drawn,
        drawn=count_drawn(job),
        avatar=len(plan.prepared),
        kept=sum(len(block) for block in plan.blocks if block.index in kept),
        followed=search.followed() if known is None else 0,
    )


def first_frames(plan: FramePlan) -> int:
    """Return how many frames the first block has; 0 if nothing is drawn."""
    return len(plan.blocks[0]) if plan.blocks else 0


def count_drawn(job: OpenJob) -> int:
    """Return in how many output frames the mouth will be drawn, if each of them shows a face. With
    `rest_in_silence` it follows from the sound, approximately.
    """
    plan, options = job.plan, job.options.speech
    if not options.rest_in_silence:
        return plan.n_drawn
    fps = speech_fps(plan.fps, options.frame_rate)
    spans = [range(one.start, one.end) for one in plan.segments if one.block is not None]
    return count_spoken(job.audio.pcm_path, fps, spans)
