"""The encoded pieces of a job, in its scratch folder on the ingress's node.

A reference that nobody has read dies with the node of the replica that made it. So each piece is
read when it is made, and written to a file: no node but the ingress's can lose it, and memory does
not grow with the length of the job.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Piece
from musetalk_pipeline.errors import StageFailed
from serve_app.graph.scratch import Scratch
from serve_app.private_folders import FOLDER_MODE

logger = logging.getLogger(__name__)

PIECES = "pieces"  # the folder in the attempt's scratch

P = ParamSpec("P")
T = TypeVar("T")
PieceData = NDArray[np.uint8]


class PieceFiles:
    """Writes and reads pieces in a thread.

    `share`: puts the bytes of a piece where another node can get them, and returns a reference.
    """

    def __init__(self, scratch: Scratch, share: Callable[[PieceData], Any] = ray.put) -> None:
        self._scratch = scratch
        self._share = share
        self._thread = ThreadPoolExecutor(1, "pieces")

    async def keep(self, attempt_id: str, piece: Piece) -> Path:
        """Write a piece.

        Raises:
            StageFailed: the scratch folder cannot be used.
        """
        return await self._run(self._write, attempt_id, piece)

    async def shared(self, paths: Sequence[Path]) -> list[Any]:
        """Return a reference to each piece. They are valid as long as somebody holds them."""
        return await self._run(self._share_all, paths)

    async def touch(self, attempt_id: str) -> None:
        """Keep the pieces of a live attempt that does nothing here at the moment."""
        await self._run(self._scratch.touch, attempt_id)

    async def release(self, attempt_id: str) -> None:
        """Remove the attempt's scratch on this node."""
        await self._run(self._scratch.release, attempt_id)

    def _write(self, attempt_id: str, piece: Piece) -> Path:
        folder = self._scratch.folder(attempt_id) / PIECES
        path = folder / f"{piece.segment.start}-{piece.segment.end}"
        try:
            folder.mkdir(exist_ok=True, mode=FOLDER_MODE)
            path.write_bytes(piece.data.data)
        except OSError as exc:  # the disk is full, for example
            logger.error("a piece cannot be kept", extra={"error": str(exc)})
            raise StageFailed("This worker cannot write to its scratch folder.") from exc
        return path

    def _share_all(self, paths: Sequence[Path]) -> list[Any]:
        return [self._share(np.fromfile(path, np.uint8)) for path in paths]

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))
