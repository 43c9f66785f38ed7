"""A whole job in one process: the stages in order, overlapped.

    thread 1   prepare blocks, encode audio    ─┐ one segment ahead
    thread 2   encode avatars, draw faces      ─┤ one segment ahead
    this one   compose segments, stitch        ─┘

The heavy work of each (decoding, networks, libx264) runs outside Python's lock. At most a few
segments exist at a time, whatever the length of the clip.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import AvatarBlock, DrawnFaces, Piece, PreparedBlock, Speech
from musetalk_pipeline.cost import EngineClock, Measured, measure
from musetalk_pipeline.engines.interface import AudioEncoder, Engine
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.media.decode import frame_bytes
from musetalk_pipeline.media.encode import stitch
from musetalk_pipeline.media.kept_frames import emptying, keeping
from musetalk_pipeline.media.reader import Frames, ReadFrames, RunningReader
from musetalk_pipeline.media.segment_frames import frames_in_order
from musetalk_pipeline.one_process.block_store import BlockStore
from musetalk_pipeline.one_process.prefetch import Prefetch
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.plan import BLOCK_S, Block, Segment
from musetalk_pipeline.receipts.cost_sum import CostSum
from musetalk_pipeline.receipts.receipt import NO_PRICES, Receipt, receipt_of
from musetalk_pipeline.stages import (
    BLOCK_BYTES,
    BlockSize,
    OpenJob,
    compose_segment,
    compose_source,
    open_job,
    prepare_block,
    require_face,
)
from musetalk_pipeline.watch import Watch

# Decoded frames of one segment that wait to be composed, instead of being decoded twice: 2 s of
# 1080p at 25 frames/s (156 MB). Three segments at most are under way, so three times that.
KEPT_BYTES = 160_000_000


@dataclass(frozen=True, slots=True)
class Tools:
    """What a process loads once and uses for every job. `encoder_threads`: of libx264. `pool`,
    `gpu_class`: of the engine, for the receipt.
    """

    detector: LandmarkDetector
    engine: Engine
    audio_encoder: AudioEncoder
    encoder_threads: int = 1
    pool: str | None = None
    gpu_class: str | None = None


@dataclass(frozen=True, slots=True)
class FrameMemory:
    """How many bytes of decoded frames one block may have, and how many of them are kept, for as
    long as a segment is under way, so that they are not decoded twice.
    """

    block_bytes: int = BLOCK_BYTES
    kept_bytes: int = KEPT_BYTES


DEFAULT_MEMORY = FrameMemory()


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a job is. `frames_total` is 0 until the input has been checked."""

    stage: str  # open, compose or finish
    frames_done: int = 0
    frames_total: int = 0


OnProgress = Callable[[RunProgress], None]


@dataclass(frozen=True, slots=True)
class Result:
    """A finished job. `stage_seconds` are seconds of work, under the names that the served
    application gives them; stages overlap, so they add up to more than `elapsed_s`.
    `frames_with_face` counts output frames. `receipt` has no prices. `warnings`:
    sentences about what was decided. `source_of`: returns the source frame of an output frame.
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
    receipt: Receipt
    source_of: Callable[[int], int]
    warnings: tuple[str, ...] = ()


def run(
    video_path: Path,
    audio_path: Path,
    out_path: Path,
    options: JobOptions,
    tools: Tools,
    *,
    others: Mapping[str, Path] | None = None,
    limits: MediaLimits | None = None,
    block_s: float = BLOCK_S,
    memory: FrameMemory = DEFAULT_MEMORY,
    work_dir: Path | None = None,
    watch: Watch | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Result:
    """Make the video of `video_path` speak `audio_path`; the result appears at `out_path` when it
    is complete. Everything in between lies in one temporary folder, which is always removed. It is
    made in `work_dir`, if that is given. `block_s`: seconds of source in one block. `others`: the
    files of the sounds that segments have of their own, by their addresses.

    Raises:
        MediaError: the input is at fault; the message says how.
        ProcessingError: this machine is at fault.
    """
    watch = watch or Watch()
    with tempfile.TemporaryDirectory(
        prefix="lipsync-", dir=work_dir, ignore_cleanup_errors=True
    ) as folder:
        on_progress(RunProgress("open"))
        started = time.monotonic()
        job = open_job(
            JobFiles(video_path, audio_path, others=others or {}),
            Path(folder),
            options,
            limits or MediaLimits(),
            tools.detector,
            block_size=BlockSize(block_s, memory.block_bytes),
        )
        opening_s = time.monotonic() - started
        this_run = _Run(job, tools, BlockStore(job.plan, Path(folder)), watch, memory.kept_bytes)
        this_run.costs.add_seconds("validation", opening_s)
        return this_run.make(out_path, on_progress)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A segment ready to be drawn on the block `index`. `block`: None if its avatar is in the block
    store. `frames`: its source frames in order, if they were kept when they were prepared.
    """

    segment: Segment
    index: int
    block: Measured[PreparedBlock] | None
    speech: Measured[Speech]
    frames: Frames | None


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A drawn segment. `frames`: as in `_Prepared`."""

    avatar: AvatarBlock
    faces: Measured[DrawnFaces]
    frames: Frames | None


class _Run:
    """One opened job on its way through the threads of this process."""

    def __init__(
        self, job: OpenJob, tools: Tools, blocks: BlockStore, watch: Watch, kept_bytes: int
    ) -> None:
        self.costs = CostSum()
        self._job, self._tools, self._blocks, self._watch = job, tools, blocks, watch
        self._kept_bytes = kept_bytes
        self._clock = EngineClock(tools.pool, tools.gpu_class)
        self._frames_composed = 0
        self._frames_with_face = 0

    def make(self, out_path: Path, on_progress: OnProgress) -> Result:
        """Run all stages that follow the opening."""
        with (
            Prefetch(self._prepare(), name="prepare") as prepared,
            Prefetch(self._draw(iter(prepared)), name="draw") as drawn,
            closing(self._compose(iter(drawn), on_progress)) as pieces,
        ):
            frames = self._stitch(pieces, out_path)
        engine, job = self._tools.engine, self._job
        elapsed_s = time.monotonic() - self._watch.started
        return Result(
            path=out_path,
            engine=engine.name,
            model_version=engine.model_version,
            landmarks=self._tools.detector.name,
            width=job.picture.width,
            height=job.picture.height,
            fps=job.plan.fps,
            frames=frames,
            frames_with_face=self._frames_with_face,
            elapsed_s=elapsed_s,
            stage_seconds=dict(self.costs.seconds),
            peak_memory_mib=engine.peak_memory_mib(),
            receipt=receipt_of(
                self.costs.so_far(),
                NO_PRICES,
                finished_s=float(frames / job.plan.fps),
                wall_s=elapsed_s,
            ),
            source_of=job.plan.source_of,
            warnings=job.warnings,
        )

    def _prepare(self) -> Generator[_Prepared | Segment, None, None]:
        """Yield the segments in order; those that draw on no block as they are."""
        with self._reader() as read:
            for segment in self._job.plan.segments:
                index = segment.block
                if index is None:
                    yield segment
                    continue
                block: Measured[PreparedBlock] | None = None
                frames: Frames | None = None
                if not self._blocks.has(index, segment.index):
                    block, frames = self._prepare_block(segment, index, read)
                yield _Prepared(segment, index, block, self._encode_audio(segment), frames)

    def _prepare_block(
        self, segment: Segment, index: int, read: ReadFrames
    ) -> tuple[Measured[PreparedBlock], Frames | None]:
        """Prepare the block of a segment, and return its frames too if they can be kept."""
        job, tools = self._job, self._tools
        block = job.plan.blocks[index]
        kept = deque[NDArray[np.uint8]]() if self._can_keep(segment, block) else None
        prepared = measure(
            "prepare",
            len(block),
            lambda: prepare_block(
                job,
                block,
                tools.detector,
                needs_parse_inputs=tools.engine.needs_parse_inputs,
                read=read if kept is None else keeping(read, block, kept),
                check=self._watch.check,
            ),
        )
        return prepared, None if kept is None else emptying(kept)

    def _can_keep(self, segment: Segment, block: Block) -> bool:
        """Return whether a block's frames, in order, are the segment's, and few enough to keep."""
        picture = self._job.picture
        is_same = segment.source_frames() == list(range(block.start, block.end))
        return (
            is_same and len(block) * frame_bytes(picture.width, picture.height) <= self._kept_bytes
        )

    def _encode_audio(self, segment: Segment) -> Measured[Speech]:
        job, encoder = self._job, self._tools.audio_encoder
        return measure(
            "listen",
            len(segment),
            lambda: encoder.encode(job.audio, job.plan.fps, segment, job.options.speech),
        )

    def _draw(
        self, prepared: Iterator[_Prepared | Segment]
    ) -> Generator[_Drawn | Segment, None, None]:
        for item in prepared:
            if isinstance(item, Segment):
                yield item
                continue
            avatar = self._avatar(item)
            faces = self._draw_faces(item, avatar)
            self._blocks.put_back(avatar.value)
            yield _Drawn(avatar.value, faces, item.frames)

    def _avatar(self, item: _Prepared) -> Measured[AvatarBlock]:
        """Encode the segment's block, or take it from the store, which costs nothing."""
        block = item.block
        if block is None:
            return Measured(self._blocks.take(item.index), ())
        engine, options = self._tools.engine, self._job.options.mask
        return measure(
            "encode",
            len(block.value.block),
            lambda: engine.encode(block.value, options, self._watch.check),
            (block,),
            clock=self._clock,
        )

    def _draw_faces(self, item: _Prepared, avatar: Measured[AvatarBlock]) -> Measured[DrawnFaces]:
        engine, options, speech = self._tools.engine, self._job.options.speech, item.speech
        drawn = measure(
            "generate",
            len(item.segment),
            lambda: engine.generate(
                avatar.value, speech.value, item.segment, options, self._watch.check
            ),
            (avatar, speech),
            clock=self._clock,
        )
        return drawn.drawing(len(drawn.value.faces))

    def _compose(
        self, drawn: Iterator[_Drawn | Segment], on_progress: OnProgress
    ) -> Generator[Piece, None, None]:
        """Yield the pieces in order, one at a time; refuse at the end if no frame had a face."""
        total = self._job.plan.n_output
        on_progress(RunProgress("compose", 0, total))
        with self._reader() as read:
            for item in drawn:
                piece = self._compose_segment(item, read)
                self.costs.add(piece.costs)
                self._frames_composed += len(piece.value.segment)
                self._frames_with_face += piece.value.frames_with_face
                yield piece.value
                on_progress(RunProgress("compose", self._frames_composed, total))
        # Here, before `stitch` lets the file appear.
        require_face(self._frames_with_face, self._job.plan)
        on_progress(RunProgress("finish", self._frames_composed, total))

    def _compose_segment(self, item: _Drawn | Segment, read: ReadFrames) -> Measured[Piece]:
        job, check = self._job, self._watch.check
        if isinstance(item, Segment):
            return self._compose_source(item, read)
        faces = item.faces.value
        frames = item.frames or frames_in_order(
            job.source, job.picture, faces.segment, read=read, check=check
        )
        threads = self._tools.encoder_threads
        return measure(
            "compose",
            len(faces.segment),
            lambda: compose_segment(
                job, item.avatar, faces, frames=frames, threads=threads, check=check
            ),
            (item.faces,),
        )

    def _compose_source(self, segment: Segment, read: ReadFrames) -> Measured[Piece]:
        threads, check = self._tools.encoder_threads, self._watch.check
        return measure(
            "compose",
            len(segment),
            lambda: compose_source(self._job, segment, read=read, threads=threads, check=check),
        )

    def _stitch(self, pieces: Iterator[Piece], out_path: Path) -> int:
        """Join the pieces as they come; the time spent waiting for them is not this stage's."""
        job = self._job
        started, waited = time.monotonic(), 0.0

        def data() -> Iterator[NDArray[np.uint8]]:
            nonlocal waited
            waiting_since = time.monotonic()
            for piece in pieces:
                waited += time.monotonic() - waiting_since
                yield piece.data
                waiting_since = time.monotonic()
            waited += time.monotonic() - waiting_since

        frames = stitch(data(), job.audio, out_path, job.picture, job.plan.fps)
        self.costs.add_seconds("stitch", time.monotonic() - started - waited)
        return frames

    def _reader(self) -> RunningReader:
        job = self._job
        return RunningReader(job.source, job.picture, job.source.n_frames)
