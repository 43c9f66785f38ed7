"""The stages of the application with an engine that sleeps and a detector that knows the faces.

Every call is noted in the file that `JOURNAL` names. The classes are local, so that Ray sends them
to its workers, which cannot import from this folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENCODE_SHARE = 0.1  # of the time for drawing a frame
JOURNAL = "SCALING_JOURNAL"  # the file that replicas append their calls to

Note = Callable[[str, str, int, float], None]


def stage_kinds() -> tuple[type, type, type]:
    """Return Preprocessor, Generator and Finisher that take no time but what is wanted."""

    def note(kind: str, pool: str, frames: int, began: float) -> None:
        call = {
            **{"kind": kind, "pool": pool, "frames": frames, "replica": os.getpid()},
            **{"began": began, "ended": time.time()},
        }
        with Path(os.environ[JOURNAL]).open("a") as journal:
            journal.write(json.dumps(call) + "\n")

    return _preprocessor(), _generator(note), _finisher(note)


def _generator(note: Note) -> type:
    import numpy as np

    from musetalk_pipeline.artifacts import AvatarBlock, DrawnFaces
    from musetalk_pipeline.engines.warp.engine import WarpEngine
    from serve_app.graph.generator import Generator

    class SleepingEngine(WarpEngine):
        def __init__(self, pool: Any) -> None:
            self._pool = pool

        def encode(self, prepared: Any, options: Any, check: Any = None) -> Any:
            began, frames = time.time(), len(prepared.block)
            time.sleep(ENCODE_SHARE * frames / self._pool.frames_per_s)
            note("encode", self._pool.name, frames, began)
            masks = np.zeros((len(prepared.crops), 32768), np.uint8)
            return AvatarBlock(prepared.block, prepared.faces, prepared.crops, masks)

        def generate(
            self, avatar: Any, speech: Any, segment: Any, options: Any, check: Any = None
        ) -> Any:
            began, frames = time.time(), len(segment)
            time.sleep(frames / self._pool.frames_per_s)
            rows = [row for rows in avatar.rows(segment) for row in rows]
            note("generate", self._pool.name, frames, began)
            return DrawnFaces(segment, avatar.appearance[rows], np.ones(len(rows), np.float32))

    class SleepingGenerator(Generator):
        def __init__(self, args: Any, pool: Any) -> None:
            began = time.time()
            super().__init__(args, pool)
            self._engine = SleepingEngine(pool)
            note("start", pool.name, 0, began)

    return SleepingGenerator


def _preprocessor() -> type:
    import numpy as np

    from musetalk_pipeline.faces.detector import Landmarks
    from serve_app.graph.preprocessor import Preprocessor

    class KnownFaces:
        name = "mesh"

        def detect(self, frames: Any) -> list[Any]:
            points = np.random.default_rng(0).uniform(40, 88, (68, 2)).astype(np.float32)
            return [Landmarks(points, 1.0) for _ in frames]

    class QuickPreprocessor(Preprocessor):
        def __init__(self, args: Any) -> None:
            super().__init__(args)
            self._detector = KnownFaces()

    return QuickPreprocessor


def _finisher(note: Note) -> type:
    from serve_app.graph.finisher import Finisher

    class NotingFinisher(Finisher):
        async def compose(self, opened: Any, avatar: Any, drawn: Any) -> Any:
            began = time.time()
            piece = await super().compose(opened, avatar, drawn)
            note("compose", "", len(piece.value.segment), began)
            return piece

    return NotingFinisher
