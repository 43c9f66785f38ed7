"""The encoded pieces of a job, in its scratch folder on the ingress's node.

A reference that nobody has read dies with the node of the replica that made it. So each piece is
read when it is made, and written to a file: no node but the ingress's can lose it, and memory does
not grow with the length of the job.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Piece
from serve_app.graph.scratch import Scratch

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

    async def release(self, attempt_id: str) -> None:
        """Remove the attempt's scratch on this node."""
        await self._run(self._scratch.release, attempt_id)

    def _write(self, attempt_id: str, piece: Piece) -> Path:
        folder = self._scratch.folder(attempt_id) / PIECES
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / f"{piece.segment.start}-{piece.segment.end}"
        path.write_bytes(piece.data.data)
        return path

    def _share_all(self, paths: Sequence[Path]) -> list[Any]:
        return [self._share(np.fromfile(path, np.uint8)) for path in paths]

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))
