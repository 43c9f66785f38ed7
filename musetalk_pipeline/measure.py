"""How large the output of a job will be, from its files alone: nothing is decoded into pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from musetalk_pipeline.job_media import JobFiles, open_media
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pixels.picture import fit_picture
from musetalk_pipeline.plan import FramePlan, plan_order, playing_fps
from musetalk_pipeline.stages import DEFAULT_BLOCKS, BlockSize, block_seconds


@dataclass(frozen=True, slots=True)
class JobSize:
    """The output of a job: frames, frames a second, and pixels. `first_frames`: of the frames, how
    many the first block has.
    """

    frames: int
    fps: Fraction
    width: int
    height: int
    first_frames: int


def measure_job(
    files: JobFiles,
    work_dir: Path,
    options: JobOptions,
    limits: MediaLimits,
    *,
    block_size: BlockSize = DEFAULT_BLOCKS,
) -> JobSize:
    """Check both files, and return how large the output will be. Faces are not searched.

    Raises:
        MediaError: the input cannot be used; the message says why. Do not send it again.
    """
    media = open_media(files, work_dir, options, limits)
    fps = playing_fps(media.source.fps, options.frame.fps)
    picture = fit_picture(media.source, options.frame, ())
    block_s = block_seconds(picture, fps, block_size)
    plan = plan_order(media.timeline.order, fps, block_s, media.timeline.drawn)
    return JobSize(plan.n_output, fps, picture.width, picture.height, first_frames(plan))


def first_frames(plan: FramePlan) -> int:
    """Return how many frames the first block has; 0 if nothing is drawn."""
    return len(plan.blocks[0]) if plan.blocks else 0
