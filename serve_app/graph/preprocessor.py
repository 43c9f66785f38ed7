"""The Preprocessor deployment: fetch, check, decode, find faces, crop, hear.

On the CPU; only `mmpose` and S3FD use a GPU, if the deployment has a share of one.
"""

import asyncio
import logging
import shutil

from musetalk_pipeline.artifacts import PreparedBlock, Speech
from musetalk_pipeline.errors import PipelineError
from musetalk_pipeline.media.confinement import missing
from musetalk_pipeline.media.sandbox import ChildLimits, run
from musetalk_pipeline.options import SpeechOptions
from musetalk_pipeline.plan import Block, Segment
from musetalk_pipeline.preview import Glimpse, take_glimpse
from musetalk_pipeline.stages import prepare_block
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs, jobs_at_a_time
from serve_app.graph.node_media import NodeMedia
from serve_app.graph.replica_setup import set_up_replica
from serve_app.graph.threads import Worker
from serve_app.graph.tools import build_detector, build_listener, needs_parse_inputs
from serve_app.graph.transfers import Attempt, Fetched, Opened
from serve_app.telemetry.metrics import STAGE_SECONDS

logger = logging.getLogger(__name__)

PREFLIGHT_S = 5.0  # starting a tool takes 0.1 s


class Preprocessor:
    """One loaded landmark detector and one listener."""

    def __init__(self, args: AppArgs) -> None:
        env = read_environment()
        set_up_replica(env)
        self._media = NodeMedia(args, env)
        self._media.scratch.start_janitor()
        self._detector = build_detector(args)
        self._listener = build_listener(args, jobs_at_a_time(args, env))
        self._needs_parse_inputs = needs_parse_inputs(args)
        self._threads = Worker(args.preprocessor.threads, "preprocess")
        logger.info("preprocessor ready", extra={"landmarks": args.landmarks})

    async def fetch(self, work: Attempt) -> Fetched:
        """Download a job's media. Takes no thread, so slow servers do not hold up other calls."""
        fetched = await self._media.fetch(work)
        STAGE_SECONDS.observe(fetched.seconds, {"stage": "download"})
        return fetched

    async def open(self, work: Attempt, fetched: Fetched) -> Opened:
        """Check a job's media and plan its frames."""
        opened = await self._media.open(work, fetched, self._detector, self._threads)
        STAGE_SECONDS.observe(opened.stage_seconds["validation"], {"stage": "validation"})
        return opened

    async def prepare(self, opened: Opened, block: Block) -> PreparedBlock:
        """Decode a block, find its faces and crop them."""
        job = await self._media.here(opened, self._threads)
        prepared = await self._threads.run_cancellable(
            lambda check: prepare_block(
                job,
                block,
                self._detector,
                opened.work.options,
                self._needs_parse_inputs,
                check,
            )
        )
        STAGE_SECONDS.observe(prepared.seconds, {"stage": "prepare"})
        return prepared

    async def listen(self, opened: Opened, segment: Segment, options: SpeechOptions) -> Speech:
        """Hear what is spoken during a segment."""
        job = await self._media.here(opened, self._threads)
        speech = await self._threads.run(
            self._listener.listen, job.audio, job.plan.fps, segment, options
        )
        STAGE_SECONDS.observe(speech.seconds, {"stage": "listen"})
        return speech

    async def glimpse(self, opened: Opened) -> Glimpse:
        """Prepare one frame for a preview."""
        job = await self._media.here(opened, self._threads)
        return await self._threads.run(
            take_glimpse,
            job,
            opened.work.options,
            self._detector,
            self._listener,
            self._needs_parse_inputs,
        )

    async def keep(self, attempt_id: str) -> None:
        """Say that an attempt lives, though nothing of it is worked on here just now."""
        await asyncio.to_thread(self._media.scratch.touch, attempt_id)

    async def release(self, attempt_id: str) -> None:
        """Remove an attempt's scratch on this node."""
        await asyncio.to_thread(self._media.scratch.release, attempt_id)

    async def preflight(self) -> dict[str, str]:
        """Name the tools that opening a job needs, and whether they are confined."""
        return await asyncio.to_thread(check_tools)


def check_tools() -> dict[str, str]:
    """Return `ok` or what is wrong of each tool. Media tools that cannot be confined still work, so
    that begins with `ok` too, and says what they may do.
    """
    lack = missing()
    return {
        "ffmpeg": _check_media_tool("ffmpeg"),
        "ffprobe": _check_media_tool("ffprobe"),
        "curl": "ok" if shutil.which("curl") else "not found on PATH",
        "media-confinement": "ok" if lack is None else f"ok, but {lack}",
    }


def _check_media_tool(name: str) -> str:
    """Start a tool as jobs do, with the rights that it then has."""
    try:
        done = run([name, "-version"], ChildLimits(PREFLIGHT_S))
    except PipelineError as exc:
        return exc.message
    return "ok" if done.returncode == 0 else f"does not start: {done.message}"
