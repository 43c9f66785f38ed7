"""The Finisher deployment: paste, encode, stitch, upload. It decides nothing."""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import AvatarBlock, DrawnFaces, Piece
from musetalk_pipeline.cost import Measured
from musetalk_pipeline.errors import UploadFailed
from musetalk_pipeline.media.encode import stitch
from musetalk_pipeline.media.segment_frames import frames_in_order
from musetalk_pipeline.media.shared_readers import SharedReaders
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import Segment
from musetalk_pipeline.preview import DrawnPreview, PreviewFrame, compose_preview
from musetalk_pipeline.receipts.receipt import Receipt, receipt_json, receipt_of
from musetalk_pipeline.stages import OpenJob, compose_segment, compose_source
from musetalk_pipeline.watch import Check
from serve_app.config.environment import Environment, read_environment
from serve_app.config.folders import make_folders
from serve_app.config.settings import AppArgs
from serve_app.graph.builders import build_store
from serve_app.graph.node_media import NodeMedia
from serve_app.graph.replica_setup import replica_id, set_up_replica
from serve_app.graph.stage_threads import StageThreads
from serve_app.graph.transfers import (
    Attempt,
    Description,
    Finished,
    Opened,
    PreviewPicture,
    RunFacts,
)
from serve_app.net.addresses import AddressPolicy
from serve_app.outputs.retention import retention
from serve_app.outputs.signed import SignedStore
from serve_app.outputs.store import (
    OutputStore,
    Place,
    SidecarFacts,
    StoredOutput,
    peak_ram_kb,
    sidecar,
)
from serve_app.telemetry.metrics import record_stage, recorded

logger = logging.getLogger(__name__)


class Finisher:
    """Encodes segments and stores finished videos."""

    def __init__(self, args: AppArgs) -> None:
        self._env = read_environment()
        set_up_replica(self._env)
        self._media = NodeMedia(args, self._env)
        self._media.scratch.start_janitor()
        self._store = self.make_store(args, self._env)
        self._store.check()
        # Even if outputs go elsewhere, because the folder may hold earlier ones.
        retention(args, make_folders(args, self._env).results).start()
        self._policy = AddressPolicy(
            frozenset([*args.inputs.allowed_hosts, *self._env.allowed_hosts])
        )
        self._threads = StageThreads(args.finisher.threads, "finish")
        self._readers = SharedReaders(args.finisher.threads)
        self._making_tracks: set[asyncio.Task[None]] = set()
        logger.info("finisher ready", extra={"store": self._store.name})

    def make_store(self, args: AppArgs, env: Environment) -> OutputStore:
        """Return where results go. A subclass may have another store."""
        return build_store(args, env)

    async def compose(
        self, opened: Opened, avatar: Measured[AvatarBlock], drawn: Measured[DrawnFaces]
    ) -> Measured[Piece]:
        """Paste a segment's faces and encode it."""
        job = await self._media.here(opened, self._threads)
        faces = drawn.value
        read = self._readers.of(opened.attempt.attempt_id, job.source, job.picture)

        def compose(check: Check) -> Piece:
            frames = frames_in_order(job.source, job.picture, faces.segment, read=read, check=check)
            return compose_segment(job, avatar.value, faces, frames=frames, check=check)

        self._make_track_early(opened.attempt, job, faces.segment)
        piece = await self._threads.measured("compose", len(faces.segment), compose, (drawn,))
        return recorded(piece.on(replica_id()))

    async def compose_source(self, opened: Opened, segment: Segment) -> Measured[Piece]:
        """Encode a segment in which nothing is drawn."""
        job = await self._media.here(opened, self._threads)
        read = self._readers.of(opened.attempt.attempt_id, job.source, job.picture)
        self._make_track_early(opened.attempt, job, segment)
        piece = await self._threads.measured(
            "compose",
            len(segment),
            lambda check: compose_source(job, segment, read=read, check=check),
        )
        return recorded(piece.on(replica_id()))

    async def sound(self, opened: Opened) -> NDArray[np.uint8]:
        """Return the sound of a job as the finished video will have it: (size,) uint8, an .m4a."""
        job = await self._media.here(opened, self._threads)
        if not job.audio.is_tracked:
            await self._media.make_track(opened.attempt, job.audio)
        return await asyncio.to_thread(np.fromfile, job.audio.track_path, np.uint8)

    async def finish(
        self, opened: Opened, facts: RunFacts, about: Description, pieces: Sequence[Any]
    ) -> Finished:
        """Stitch the pieces, add the sound, store the video and its sidecar.

        `pieces`: references to the (size,) uint8 bytes of each, which are fetched one by one.
        """
        job = await self._media.here(opened, self._threads)
        started = time.monotonic()
        if not job.audio.is_tracked:
            await self._media.make_track(opened.attempt, job.audio)
        path = job.audio.track_path.with_name("output.mp4")  # in the attempt's scratch
        data: Iterator[NDArray[np.uint8]] = (ray.get(piece) for piece in pieces)
        await self._threads.run(stitch, data, job.audio, path, job.picture, job.plan.fps)
        stitched = time.monotonic()
        last_stages = {"stitch": stitched - started}
        note = self._sidecar(opened, _receipt(job, facts, last_stages, facts.elapsed_s), about)
        put = self._store_of(opened.attempt).put
        stored = await self._threads.run(put, opened.attempt.job_id, path, note)
        last_stages["upload"] = time.monotonic() - stitched
        for stage, seconds in last_stages.items():
            record_stage(stage, seconds)
        total_s = facts.elapsed_s + time.monotonic() - started
        receipt = _receipt(job, facts, last_stages, total_s)
        return Finished(stored.url, _metrics(stored, receipt, about, job), job.warnings)

    async def compose_preview(
        self, frame: PreviewFrame, drawn: DrawnPreview, options: JobOptions, has_boxes: bool
    ) -> PreviewPicture:
        """Paste a preview's face and write the PNG, with its boxes or without them."""
        preview = await self._threads.run(compose_preview, frame, drawn, options)
        return PreviewPicture(
            preview.png(has_boxes=has_boxes),
            preview.face.box,
            preview.source_frame,
            preview.visible,
        )

    async def keep(self, attempt_id: str) -> None:
        """Keep the scratch of a live attempt that does nothing here at the moment."""
        await asyncio.to_thread(self._media.scratch.touch, attempt_id)

    async def release(self, attempt_id: str) -> None:
        """End an attempt's decoders here, and remove its scratch on this node."""
        await asyncio.to_thread(self._readers.close, attempt_id)
        await asyncio.to_thread(self._media.scratch.release, attempt_id)

    async def preflight(self) -> dict[str, str]:
        """Use the storage credentials."""
        try:
            await self._threads.run(self._store.check)
        except UploadFailed as exc:
            return {f"storage-{self._store.name}": exc.message}
        return {f"storage-{self._store.name}": "ok"}

    def _store_of(self, attempt: Attempt) -> OutputStore | SignedStore:
        """Return where the outputs of an attempt go."""
        return SignedStore(attempt.output, self._policy) if attempt.output else self._store

    def _make_track_early(self, attempt: Attempt, job: OpenJob, segment: Segment) -> None:
        """Encode the sound from the first segment on, while the job is drawn. Faults show when the
        job is finished.
        """
        if segment.start or job.audio.is_tracked:
            return
        making = asyncio.create_task(self._media.make_track(attempt, job.audio))
        self._making_tracks.add(making)
        making.add_done_callback(self._end_making)

    def _end_making(self, making: "asyncio.Task[None]") -> None:
        self._making_tracks.discard(making)
        if not making.cancelled() and (error := making.exception()) is not None:
            logger.info("sound not encoded early", extra={"error": type(error).__name__})

    def _sidecar(self, opened: Opened, receipt: Receipt, about: Description) -> bytes:
        attempt, job = opened.attempt, opened.job
        place = Place(None, None) if attempt.output else self._store.place(attempt.job_id)
        return sidecar(
            SidecarFacts(
                musetalk_job_id=attempt.job_id,
                queue_job_id=attempt.queue_job_id or self._env.salad_queue_job_id,
                gpu_class=receipt.gpu_class or about.gpu_class,
                aspect_ratio=attempt.aspect_ratio,
                resolution=attempt.resolution,
                generation_time_sec=round(receipt.stage_s.get("inference", 0.0), 3),
                script_wall_time_sec=round(receipt.wall_s, 3),
                peak_vram_mib=receipt.work.peak_memory_mib,
                peak_ram_kb=peak_ram_kb(),
                b2_bucket=place.bucket,
                b2_file_name=place.file_name,
                engine=about.engine,
                model_version=about.model_version,
                source_sha256=job.source.sha256,
                audio_sha256=job.audio.sha256,
                stage_times=_rounded(receipt.stage_s),
                receipt=receipt_json(receipt),
            )
        )


def _receipt(
    job: OpenJob, facts: RunFacts, last_stages: dict[str, float], wall_s: float
) -> Receipt:
    plan = job.plan
    return receipt_of(
        facts.work,
        facts.prices,
        finished_s=float(plan.n_output / plan.fps),
        wall_s=wall_s,
        last_stages=last_stages,
    )


def _metrics(
    stored: StoredOutput, receipt: Receipt, about: Description, job: OpenJob
) -> dict[str, object]:
    """Return the two forms of docs/protocol.md §1: flat upper-case keys, and nested ones."""
    return {
        "GENERATION_TIME_SEC": round(receipt.stage_s.get("inference", 0.0), 3),
        "SCRIPT_WALL_TIME_SEC": round(receipt.wall_s, 3),
        "PEAK_VRAM_MIB": receipt.work.peak_memory_mib,
        "PEAK_RAM_KB": peak_ram_kb(),
        "gpu_class": receipt.gpu_class or about.gpu_class,
        "engine": about.engine,
        "model_version": about.model_version,
        "landmarks": about.landmarks,
        "width": job.picture.width,
        "height": job.picture.height,
        "fps": round(float(job.plan.fps), 3),
        "stage_times": _rounded(receipt.stage_s),
        "total_time": round(receipt.wall_s, 3),
        "receipt": receipt_json(receipt),
        **stored.metrics,
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
