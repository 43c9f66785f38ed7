"""How large the output of a job will be, from its files alone: nothing is decoded into pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pixels.picture import fit_picture
from musetalk_pipeline.plan import playing_fps
from musetalk_pipeline.stages import (
    DEFAULT_BLOCKS,
    BlockSize,
    JobFiles,
    block_seconds,
    open_both,
    output_frames,
)


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
    source, audio = open_both(files, work_dir, options, limits)
    fps = playing_fps(source.fps, options.frame.fps)
    frames = output_frames(audio, fps, options)
    picture = fit_picture(source, options.frame, ())
    seconds = block_seconds(picture, fps, block_size)
    first = min(source.n_frames, frames, max(1, round(seconds * float(fps))))
    return JobSize(frames, fps, picture.width, picture.height, first)
