"""The application as a cluster of the tests runs it: real stages, at a speed that is configured.

`import_path: tests.cluster.stages:build_app` of a Serve configuration binds them. The engine is
`warp`, whose pictures are a function of the input alone.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.serve import Application

from musetalk_pipeline.artifacts import Piece
from musetalk_pipeline.cost import Measured
from musetalk_pipeline.engines import Engine
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.stages import OpenJob
from serve_app.app import StageKinds, bind_app
from serve_app.config.environment import Environment, read_environment
from serve_app.config.settings import AppArgs, PoolSettings
from serve_app.graph.finisher import Finisher
from serve_app.graph.generator import Generator
from serve_app.graph.node_media import CheckedMedia, NodeMedia
from serve_app.graph.preprocessor import Preprocessor
from serve_app.outputs.b2 import B2Settings, B2Store
from serve_app.outputs.store import OutputStore
from tests.cluster.names import B2_ADDRESS, CHECKS, DRAWN

COMPOSE_S = 0.5  # more for each segment
STEP_S = 0.05  # between two checks whether the call has been cancelled


def _note(file: str, text: str) -> None:
    """Add a line to a file of this node."""
    with (Path(tempfile.gettempdir()) / file).open("a") as lines:
        lines.write(f"{text}\n")


class PacedEngine:
    """An engine that takes a fixed time for each frame. All else is the real engine's."""

    def __init__(self, engine: Engine, frames_per_s: float) -> None:
        self._engine, self._frame_s = engine, 1 / frames_per_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, avatar: Any, speech: Any, segment: Any, options: Any, check: Callable[[], None]
    ) -> Any:
        """Draw a segment, and return when its time is over."""
        until = time.monotonic() + len(segment) * self._frame_s
        drawn = self._engine.generate(avatar, speech, segment, options, check)
        while (left := until - time.monotonic()) > 0:
            check()
            time.sleep(min(left, STEP_S))
        _note(DRAWN, str(len(segment)))
        return drawn


class PacedGenerator(Generator):
    """A Generator whose speed is the one that its pool is configured with."""

    def __init__(self, args: AppArgs, pool: PoolSettings) -> None:
        super().__init__(args, pool)
        self._engine = PacedEngine(self._engine, pool.frames_per_s)  # type: ignore[assignment]


class CountedMedia(NodeMedia):
    """Notes each check of a job's media."""

    def _check(self, job: OpenJob, files: JobFiles, folder: Path) -> CheckedMedia:
        _note(CHECKS, folder.name)
        return super()._check(job, files, folder)


def on_own_disk(args: AppArgs) -> AppArgs:
    """Return the arguments for a stage that does not see the folder of the ingress' uploads."""
    folder = Path(tempfile.gettempdir()) / "uploads"
    return args.model_copy(update={"uploads": args.uploads.model_copy(update={"folder": folder})})


class CountingPreprocessor(Preprocessor):
    """A Preprocessor whose checks are counted."""

    def __init__(self, args: AppArgs) -> None:
        args = on_own_disk(args)
        super().__init__(args)
        self._media = CountedMedia(args, read_environment())


class PacedFinisher(Finisher):
    """A Finisher that takes a moment for each segment, so that a fault can meet it.

    Its checks are counted, and it stores at TEST_B2_ADDRESS if that is set.
    """

    def __init__(self, args: AppArgs) -> None:
        args = on_own_disk(args)
        super().__init__(args)
        self._media = CountedMedia(args, read_environment())

    async def compose(self, *parts: Any) -> Measured[Piece]:
        """Compose a segment."""
        piece = await super().compose(*parts)
        await asyncio.sleep(COMPOSE_S)
        return piece

    def make_store(self, args: AppArgs, env: Environment) -> OutputStore:
        """Return the store of the superclass, with another address."""
        if (address := os.environ.get(B2_ADDRESS)) is None:
            return super().make_store(args, env)
        assert env.b2_key_id and env.b2_app_key and env.b2_bucket
        key = (env.b2_key_id.get_secret_value(), env.b2_app_key.get_secret_value())
        return B2Store(B2Settings(*key, env.b2_bucket, env.b2_prefix, realm=address))


def build_app(args: AppArgs) -> Application:
    """Bind the application."""
    return bind_app(args, StageKinds(CountingPreprocessor, PacedGenerator, PacedFinisher))
