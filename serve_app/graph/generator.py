"""The Generator deployment: everything with a big network. No job touches disk or HTTP here."""

import asyncio
import dataclasses
import logging
import time

from musetalk_pipeline.artifacts import AvatarBlock, DrawnFaces, PreparedBlock, Speech
from musetalk_pipeline.errors import PipelineError
from musetalk_pipeline.options import JobOptions, MaskOptions, SpeechOptions
from musetalk_pipeline.plan import Segment
from musetalk_pipeline.preview import DrawnGlimpse, Glimpse, draw_glimpse
from serve_app.config.environment import read_environment
from serve_app.config.gpu_class import detect_gpu_class, gpu_class
from serve_app.config.settings import AppArgs, PoolSettings
from serve_app.graph.replica_setup import set_up_replica
from serve_app.graph.threads import Worker
from serve_app.graph.tools import build_engine, device_of
from serve_app.graph.transfers import Description
from serve_app.telemetry.metrics import FRAMES_DRAWN, STAGE_SECONDS

logger = logging.getLogger(__name__)


class Generator:
    """One loaded engine. Calls wait for each other: its networks fill the device by themselves."""

    def __init__(self, args: AppArgs, pool: PoolSettings) -> None:
        started = time.monotonic()
        env = read_environment()
        set_up_replica(env)
        self._thread = Worker(1, "engine")
        self._engine = build_engine(args, pool, env)
        self._thread.run_here(self._engine.warm_up)
        self._description = Description(
            engine=self._engine.name,
            model_version=self._engine.model_version,
            landmarks=args.landmarks,
            device=device_of(pool),
            gpu_class=gpu_class(env, detected=detect_gpu_class(), is_buffer=env.is_buffer),
            batch_size=getattr(self._engine, "batch_size", 1),
        )
        logger.info(
            "engine ready",
            extra={"pool": pool.name, "engine": self._engine.name, "s": time.monotonic() - started},
        )

    async def describe(self) -> Description:
        """Say what draws here."""
        return self._description

    async def encode(self, prepared: PreparedBlock, options: MaskOptions) -> AvatarBlock:
        """Compute a block's latents and masks."""
        avatar = await self._thread.run_cancellable(
            lambda check: self._engine.encode(prepared, options, check)
        )
        STAGE_SECONDS.observe(avatar.seconds, {"stage": "encode"})
        return dataclasses.replace(avatar, prepare_seconds=prepared.seconds)

    async def generate(
        self, avatar: AvatarBlock, speech: Speech, segment: Segment, options: SpeechOptions
    ) -> DrawnFaces:
        """Draw a segment's faces."""
        drawn = await self._thread.run_cancellable(
            lambda check: self._engine.generate(avatar, speech, segment, options, check)
        )
        STAGE_SECONDS.observe(drawn.seconds, {"stage": "generate"})
        if len(drawn.faces):  # a counter refuses 0
            FRAMES_DRAWN.inc(len(drawn.faces))
        return dataclasses.replace(
            drawn,
            listen_seconds=speech.seconds,
            peak_memory_mib=self._engine.peak_memory_mib(),
        )

    async def draw_glimpse(self, glimpse: Glimpse, options: JobOptions) -> DrawnGlimpse:
        """Draw the one face of a preview."""
        return await self._thread.run(draw_glimpse, glimpse, self._engine, options)

    async def preflight(self) -> dict[str, str]:
        """Draw one tiny generation."""
        try:
            async with asyncio.timeout(50.0):
                await self._thread.run(self._engine.warm_up)
        except PipelineError as exc:
            return {"engine": exc.message}
        except TimeoutError:
            return {"engine": "busy: no tiny generation within 50 s"}
        return {"engine": "ok"}
