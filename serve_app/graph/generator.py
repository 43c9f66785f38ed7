"""The Generator deployment: everything with a big network. Jobs use neither disk nor HTTP here."""

import asyncio
import logging
import time
from typing import TypeVar

from musetalk_pipeline.artifacts import AvatarBlock, DrawnFaces, PreparedBlock, Speech
from musetalk_pipeline.cost import EngineClock, Measured
from musetalk_pipeline.errors import PipelineError
from musetalk_pipeline.options import JobOptions, MaskOptions, SpeechOptions
from musetalk_pipeline.plan import Segment
from musetalk_pipeline.preview import DrawnPreview, PreviewFrame, draw_preview
from serve_app.config.card_checks import card_check, cards_in_words, read_cards
from serve_app.config.environment import read_environment
from serve_app.config.gpu_class import detect_gpu_class, gpu_class
from serve_app.config.settings import AppArgs, PoolSettings
from serve_app.graph.builders import build_engine, device_of
from serve_app.graph.replica_setup import replica_id, set_up_replica
from serve_app.graph.stage_threads import StageThreads
from serve_app.graph.transfers import Description
from serve_app.telemetry.metrics import (
    ENGINE_BUSY,
    ENGINES,
    FRAMES_DRAWN,
    VRAM_HELD,
    VRAM_PEAK,
    recorded,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Generator:
    """One loaded engine. Calls wait for each other, because one of them fills the device."""

    def __init__(self, args: AppArgs, pool: PoolSettings) -> None:
        started = time.monotonic()
        env = read_environment()
        set_up_replica(env)
        self._thread = StageThreads(1, "engine")
        self._tags = {"pool": pool.name}
        self._engine = build_engine(args, pool, env)
        self._thread.run_here(self._engine.warm_up)
        machine = gpu_class(env, detected=detect_gpu_class(), is_buffer=env.is_buffer)
        self._clock = EngineClock(
            pool.name, machine, worked=lambda seconds: ENGINE_BUSY.inc(seconds, self._tags)
        )
        self._description = Description(
            engine=self._engine.name,
            model_version=self._engine.model_version,
            landmarks=args.landmarks,
            device=device_of(pool),
            gpu_class=machine,
            batch_size=getattr(self._engine, "batch_size", 1),
        )
        if self._description.device.startswith("cuda"):
            logger.info(
                "GPU checked",
                extra={"pool": pool.name, "gpu": cards_in_words(read_cards()), "is": card_check()},
            )
        ENGINES.set(1, self._tags)
        logger.info(
            "engine ready",
            extra={"pool": pool.name, "engine": self._engine.name, "s": time.monotonic() - started},
        )

    async def describe(self) -> Description:
        """Return what draws here."""
        return self._description

    async def encode(
        self, prepared: Measured[PreparedBlock], options: MaskOptions
    ) -> Measured[AvatarBlock]:
        """Compute a block's latents and masks."""
        block = prepared.value
        avatar = await self._thread.measured(
            "encode",
            len(block.block),
            lambda check: self._engine.encode(block, options, check),
            (prepared,),
            self._clock,
        )
        return self._recorded(avatar)

    async def generate(
        self,
        avatar: Measured[AvatarBlock],
        speech: Measured[Speech],
        segment: Segment,
        options: SpeechOptions,
    ) -> Measured[DrawnFaces]:
        """Draw a segment's faces."""
        engine = self._engine
        drawn = await self._thread.measured(
            "generate",
            len(segment),
            lambda check: engine.generate(avatar.value, speech.value, segment, options, check),
            (avatar, speech),
            self._clock,
        )
        faces = len(drawn.value.faces)
        if faces:  # a counter refuses 0
            FRAMES_DRAWN.inc(faces, self._tags)
        return self._recorded(drawn.drawing(faces))

    async def draw_preview(self, frame: PreviewFrame, options: JobOptions) -> DrawnPreview:
        """Draw the one face of a preview."""

        def draw() -> DrawnPreview:
            with self._clock.working():
                return draw_preview(frame, self._engine, options)

        return await self._thread.run(draw)

    async def preflight(self) -> dict[str, str]:
        """Draw one tiny generation, and compare the GPU with the build of torch."""
        checks = {"engine": await self._check_engine()}
        if self._description.device.startswith("cuda"):
            checks["card"] = await asyncio.to_thread(card_check)
        return checks

    async def _check_engine(self) -> str:
        try:
            async with asyncio.timeout(50.0):
                await self._thread.run(self._engine.warm_up)
        except PipelineError as exc:
            return exc.message
        except TimeoutError:
            return "busy: no tiny generation within 50 s"
        return "ok"

    def _recorded(self, measured: Measured[T]) -> Measured[T]:
        """Complete the cost of the engine's last call, and count it."""
        peak_mib, held_mib = self._engine.peak_memory_mib(), self._engine.held_memory_mib()
        for gauge, mib in ((VRAM_PEAK, peak_mib), (VRAM_HELD, held_mib)):
            if mib is not None:
                gauge.set(mib, self._tags)
        return recorded(measured.on(replica_id(), peak_mib))
