"""How large the output of a job will be, from its files alone: nothing is decoded into pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from musetalk_pipeline.job_media import JobFiles, open_media
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pixels.picture import fit_picture
from musetalk_pipeline.plan import playing_fps
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
    source, order = media.source, media.timeline.order
    fps = playing_fps(source.fps, options.frame.fps)
    picture = fit_picture(source, options.frame, ())
    seconds = block_seconds(picture, fps, block_size)
    first = min(len(order), order.n_output, max(1, round(seconds * float(fps))))
    return JobSize(order.n_output, fps, picture.width, picture.height, first)
