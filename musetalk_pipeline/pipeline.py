"""A whole job in one process: the stages in order, overlapped.

    thread 1   prepare blocks, listen          ─┐ one segment ahead
    thread 2   encode avatars, draw faces      ─┤ one segment ahead
    this one   compose segments, stitch        ─┘

The heavy work of each (decoding, networks, libx264) runs outside Python's lock. At most a few
segments exist at a time, whatever the length of the clip.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import AvatarBlock, DrawnFaces, Piece, PreparedBlock, Speech
from musetalk_pipeline.engines.interface import Engine, Listener
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.media.decode import frame_bytes
from musetalk_pipeline.media.encode import stitch
from musetalk_pipeline.media.reader import RunningReader
from musetalk_pipeline.one_process.ahead import Ahead
from musetalk_pipeline.one_process.shelf import BlockShelf
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.plan import BLOCK_S, Block, Segment
from musetalk_pipeline.stages import OpenJob, compose_segment, open_job, prepare_block, require_face
from musetalk_pipeline.watch import Watch

# Decoded frames of one segment that wait to be composed, instead of being decoded twice: 2 s of
# 1080p at 25 frames/s (156 MB). Three segments at most are under way, so three times that.
KEPT_BYTES = 160_000_000


@dataclass(frozen=True, slots=True)
class Tools:
    """What a process loads once and uses for every job. `encoder_threads`: of libx264."""

    detector: LandmarkDetector
    engine: Engine
    listener: Listener
    encoder_threads: int = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. `frames_total` is 0 until the input has been checked."""

    stage: str  # open, compose or finish
    frames_done: int = 0
    frames_total: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job. `stage_seconds` are seconds of work, under the names that the served
    application gives them; stages overlap, so they add up to more than `elapsed_s`.
    `frames_with_face` counts output frames. `warnings`: sentences about what was decided.
    """

    path: Path
    engine: str
    model_version: str
    landmarks: str
    width: int
    height: int
    fps: Fraction
    frames: int
    frames_with_face: int
    elapsed_s: float
    stage_seconds: dict[str, float]
    peak_memory_mib: float | None
    warnings: tuple[str, ...] = ()


def run(
    video_path: Path,
    audio_path: Path,
    out_path: Path,
    options: JobOptions,
    tools: Tools,
    *,
    limits: MediaLimits | None = None,
    block_s: float = BLOCK_S,
    work_dir: Path | None = None,
    watch: Watch | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Make the video of `video_path` speak `audio_path`; the result appears at `out_path` when it
    is complete. Everything in between lies in one temporary folder, which is always removed; it is
    made in `work_dir`, if that is given. `block_s`: seconds of source in one block.

    Raises:
        MediaError: the input is at fault; the sentence says how.
        ProcessingError: this machine is at fault.
    """
    watch = watch or Watch()
    with tempfile.TemporaryDirectory(
        prefix="lipsync-", dir=work_dir, ignore_cleanup_errors=True
    ) as folder:
        scratch = Path(folder)
        tally = _Tally()
        on_progress(Progress("open"))
        started = time.monotonic()
        job = open_job(
            video_path,
            audio_path,
            scratch,
            options,
            limits or MediaLimits(),
            tools.detector,
            block_s=block_s,
        )
        tally.seconds["validation"] = time.monotonic() - started
        shelf = BlockShelf(job.plan, scratch)
        with (
            Ahead(_prepare(job, options, tools, shelf, watch), name="prepare") as prepared,
            Ahead(_draw(iter(prepared), options, tools, shelf, watch), name="draw") as drawn,
            closing(
                _compose(job, iter(drawn), options, tools, tally, watch, on_progress)
            ) as pieces,
        ):
            frames = _stitch(pieces, job, out_path, tally)
        return Result(
            path=out_path,
            engine=tools.engine.name,
            model_version=tools.engine.model_version,
            landmarks=tools.detector.name,
            width=job.picture.width,
            height=job.picture.height,
            fps=job.plan.fps,
            frames=frames,
            frames_with_face=tally.frames_with_face,
            elapsed_s=time.monotonic() - watch.started,
            stage_seconds=dict(tally.seconds),
            peak_memory_mib=tools.engine.peak_memory_mib(),
            warnings=job.warnings,
        )


def _stitch(pieces: Iterator[Piece], job: OpenJob, out_path: Path, tally: _Tally) -> int:
    """Join the pieces as they come; the time spent waiting for them is not this stage's."""
    started, waited = time.monotonic(), 0.0

    def data() -> Iterator[NDArray[np.uint8]]:
        nonlocal waited
        asked = time.monotonic()
        for piece in pieces:
            waited += time.monotonic() - asked
            yield piece.data
            asked = time.monotonic()
        waited += time.monotonic() - asked

    frames = stitch(data(), job.audio, out_path, job.picture, job.plan.fps)
    tally.seconds["stitch"] = time.monotonic() - started - waited
    return frames


# The frames of a segment, in order, if they have been kept since they were prepared.
_Decoded: TypeAlias = deque[NDArray[np.uint8]] | None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A segment ready to be drawn. `block` is None if its avatar is on the shelf."""

    segment: Segment
    block: PreparedBlock | None
    decoded: _Decoded
    speech: Speech


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A drawn segment. `seconds`: of work so far, by stage."""

    segment: Segment
    decoded: _Decoded
    avatar: AvatarBlock
    faces: DrawnFaces
    seconds: dict[str, float]


class _Tally:
    """What happened so far, summed up."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.frames = 0
        self.frames_with_face = 0

    def add(self, drawn: _Drawn, piece: Piece) -> None:
        for stage, seconds in {**drawn.seconds, "compose": piece.seconds}.items():
            self.seconds[stage] += seconds
        self.frames += len(drawn.segment)
        self.frames_with_face += len(drawn.faces.faces)


def _prepare(
    job: OpenJob, options: JobOptions, tools: Tools, shelf: BlockShelf, watch: Watch
) -> Generator[_Prepared, None, None]:
    needs_parse = tools.engine.needs_parse_inputs
    with _reader(job) as read:
        for segment in job.plan.segments:
            block: PreparedBlock | None = None
            decoded: _Decoded = None
            if not shelf.has(segment.block, segment.index):
                wanted = job.plan.blocks[segment.block]
                decoded = deque() if _can_be_kept(job, segment, wanted) else None
                block = prepare_block(
                    job, wanted, tools.detector, options, needs_parse, watch.check, read, decoded
                )
            speech = tools.listener.listen(job.audio, job.plan.fps, segment, options.speech)
            yield _Prepared(segment, block, decoded, speech)


def _can_be_kept(job: OpenJob, segment: Segment, block: Block) -> bool:
    """Tell whether a block's frames, as decoded, are the segment's, and small enough to keep."""
    is_same = list(segment.source_frames()) == list(range(block.start, block.end))
    size = len(block) * frame_bytes(job.picture.width, job.picture.height)
    return is_same and size <= KEPT_BYTES


def _reader(job: OpenJob) -> RunningReader:
    return RunningReader(job.source, job.picture, job.plan.blocks[-1].end)


def _draw(
    prepared: Iterator[_Prepared],
    options: JobOptions,
    tools: Tools,
    shelf: BlockShelf,
    watch: Watch,
) -> Generator[_Drawn, None, None]:
    for item in prepared:
        seconds = {"listen": item.speech.seconds, "inference": 0.0}
        if item.block is None:
            avatar = shelf.take(item.segment.block)
        else:
            avatar = tools.engine.encode(item.block, options.mask, watch.check)
            seconds |= {"prepare": item.block.seconds, "inference": avatar.seconds}
        faces = tools.engine.generate(
            avatar, item.speech, item.segment, options.speech, watch.check
        )
        shelf.done(avatar)
        seconds["inference"] += faces.seconds
        yield _Drawn(item.segment, item.decoded, avatar, faces, seconds)


def _compose(
    job: OpenJob,
    drawn: Iterator[_Drawn],
    options: JobOptions,
    tools: Tools,
    tally: _Tally,
    watch: Watch,
    on_progress: Callable[[Progress], None],
) -> Generator[Piece, None, None]:
    """Yield the pieces in order, one at a time; refuse at the end if no frame had a face."""
    total = job.plan.n_output
    on_progress(Progress("compose", 0, total))
    threads = tools.encoder_threads
    with _reader(job) as read:
        for item in drawn:
            piece = compose_segment(
                job,
                item.segment,
                item.avatar,
                item.faces,
                options,
                threads,
                watch.check,
                read,
                item.decoded,
            )
            tally.add(item, piece)
            yield piece
            on_progress(Progress("compose", tally.frames, total))
    # Asked here, before `stitch` lets the file appear.
    require_face(tally.frames_with_face, job.plan)
    on_progress(Progress("finish", tally.frames, total))
