"""The Preprocessor deployment: fetch, check, decode, find faces, crop, encode audio.

It runs on the CPU. Only `mmpose` and S3FD use a GPU, if the deployment has a share of one.
"""

import asyncio
import logging
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray import ObjectRef

from musetalk_pipeline.artifacts import AvatarBlock, PreparedBlock, Speech
from musetalk_pipeline.cost import Measured
from musetalk_pipeline.errors import PipelineError
from musetalk_pipeline.job_media import Digests
from musetalk_pipeline.measure import JobSize
from musetalk_pipeline.media.confinement import missing
from musetalk_pipeline.media.sandbox import ChildLimits, run
from musetalk_pipeline.media.shared_readers import SharedReaders
from musetalk_pipeline.plan import Block, Segment
from musetalk_pipeline.preview import PreviewFrame, pick_preview_frame
from musetalk_pipeline.stages import prepare_block
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs
from serve_app.graph.avatars import NodeAvatars
from serve_app.graph.builders import (
    build_audio_encoder,
    build_avatars,
    build_detector,
    needs_parse_inputs,
)
from serve_app.graph.node_media import NodeMedia, preprocessor_threads
from serve_app.graph.replica_setup import replica_id, set_up_replica
from serve_app.graph.stage_threads import StageThreads
from serve_app.graph.transfers import Attempt, Opened
from serve_app.telemetry.metrics import recorded

logger = logging.getLogger(__name__)

PREFLIGHT_S = 5.0  # starting a tool takes 0.1 s


class Preprocessor:
    """One loaded landmark detector and one audio encoder."""

    def __init__(self, args: AppArgs) -> None:
        env = read_environment()
        set_up_replica(env)
        self._media = NodeMedia(args, env)
        self._media.scratch.start_janitor()
        self._detector = build_detector(args)
        self._audio_encoder = build_audio_encoder(args, env)
        self._needs_parse_inputs = needs_parse_inputs(args)
        self._threads = StageThreads(preprocessor_threads(args), "preprocess")
        # Every job that has just been opened leaves one or two to its first blocks.
        self._readers = SharedReaders(2 * args.preprocessor.threads)
        self._avatars = NodeAvatars(build_avatars(args, env))
        logger.info("preprocessor ready", extra={"landmarks": args.landmarks})

    async def fetch(self, attempt: Attempt) -> Measured[Digests]:
        """Download a job's media. It occupies no thread, so slow servers delay no other call."""
        fetched = await self._media.fetch(attempt)
        return recorded(fetched.on(replica_id()))

    async def open(self, attempt: Attempt, fetched: Measured[Digests]) -> Measured[Opened]:
        """Check a job's media and plan its frames."""
        looked_up = self._avatars.look_up(attempt.options, fetched.value)
        opened = await self._media.open(
            attempt,
            fetched,
            self._detector,
            self._threads,
            known_surveys=None if looked_up is None else looked_up.surveys,
            read_for=partial(self._readers.of, attempt.attempt_id, keeps=True),
        )
        if looked_up is not None:
            known = await looked_up.known(opened.value.job)
            opened = replace(opened, value=replace(opened.value, avatar=known))
        return recorded(opened.on(replica_id()))

    async def measure(self, attempt: Attempt, fetched: Measured[Digests]) -> JobSize:
        """Check a job's media and return how large its output will be, for an estimate."""
        kept = self._avatars.kept_here(attempt.options, fetched.value)
        known = () if kept is None else (kept.surveys, kept.blocks)
        return await self._media.measure(attempt, fetched, self._threads, *known)

    async def prepare(self, opened: Opened, block: Block) -> Measured[PreparedBlock]:
        """Decode a block, find its faces and crop them."""
        job = await self._media.here(opened, self._threads)
        read = self._readers.of(opened.attempt.attempt_id, job.source, job.picture)
        prepared = await self._threads.measured(
            "prepare",
            len(block),
            lambda check: prepare_block(
                job,
                block,
                self._detector,
                needs_parse_inputs=self._needs_parse_inputs,
                read=read,
                check=check,
            ),
        )
        self._avatars.took(prepared.own)
        return recorded(prepared.on(replica_id()))

    async def load_avatar(self, opened: Opened, block: Block) -> "ObjectRef[Any] | None":
        """Return a reference to a kept block, a `Measured[AvatarBlock]`, so that the caller learns
        at once whether there is one. None: it has to be prepared and encoded.
        """
        loaded = await self._avatars.load(opened, block)
        if loaded is None:
            return None
        return await asyncio.to_thread(ray.put, recorded(loaded.on(replica_id())))

    async def store_avatar(self, opened: Opened, avatar: Measured[AvatarBlock]) -> bool:
        """Keep a block for later jobs; return whether it is kept. This never raises."""
        return await self._avatars.store(opened, avatar.value)

    async def encode_audio(self, opened: Opened, segment: Segment) -> Measured[Speech]:
        """Encode what is spoken during a segment."""
        job = await self._media.here(opened, self._threads)
        encoder, options = self._audio_encoder, job.options.speech
        speech = await self._threads.measured(
            "listen",
            len(segment),
            lambda check: encoder.encode(job.audio, job.plan.fps, segment, options),
        )
        return recorded(speech.on(replica_id()))

    async def keep_video(self, opened: Opened) -> bool:
        """Keep the video with its avatar, so that jobs can name the avatar; return whether it is
        kept.
        """
        job = await self._media.here(opened, self._threads)
        return await self._avatars.keep_video(opened, job)

    async def pick_preview_frame(self, opened: Opened) -> PreviewFrame:
        """Find and prepare one frame for a preview."""
        job = await self._media.here(opened, self._threads)
        return await self._threads.run(
            pick_preview_frame,
            job,
            self._detector,
            self._audio_encoder,
            self._needs_parse_inputs,
        )

    async def keep(self, attempt_id: str) -> None:
        """Keep the scratch of a live attempt that does nothing here at the moment."""
        await asyncio.to_thread(self._media.scratch.touch, attempt_id)

    async def release(self, attempt_id: str) -> None:
        """End an attempt's decoders here, and remove its scratch on this node."""
        await asyncio.to_thread(self._readers.close, attempt_id)
        await asyncio.to_thread(self._media.scratch.release, attempt_id)

    async def preflight(self) -> dict[str, str]:
        """Name the tools that opening a job needs, and whether they are confined."""
        return await asyncio.to_thread(check_tools)


def check_tools() -> dict[str, str]:
    """Return `ok`, or what is wrong, for each tool.

    Media tools that cannot be confined still work, so that entry begins with `ok` too, and adds
    what they may do.
    """
    unprotected = missing()
    return {
        "ffmpeg": _check_media_tool("ffmpeg"),
        "ffprobe": _check_media_tool("ffprobe"),
        "curl": "ok" if shutil.which("curl") else "not found on PATH",
        "media-confinement": "ok" if unprotected is None else f"ok, but {unprotected}",
    }


def _check_media_tool(name: str) -> str:
    """Start a tool as jobs do, with the same rights."""
    try:
        done = run([name, "-version"], ChildLimits(PREFLIGHT_S))
    except PipelineError as exc:
        return exc.message
    return "ok" if done.returncode == 0 else f"does not start: {done.message}"
