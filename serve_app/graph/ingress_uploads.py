"""Uploads on the node of the ingress, for the stages of other nodes.

A stage asks the ingress for one piece after the other through Serve's own handle, so this needs no
address, no key and no shared folder. Neither side holds more than one piece.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from musetalk_pipeline.errors import Stage, StageFailed
from musetalk_pipeline.files import part_name
from musetalk_pipeline.retries import async_retrying
from serve_app.inputs.download_body import Body, DownloadLimits
from serve_app.uploads.folder import UploadPiece

logger = logging.getLogger(__name__)

PIECE_BYTES = 4 << 20
PIECE_S = 60.0
TRIES, WAIT_S = 5, 1.0  # an ingress that died is back after some 10 s

# Returns the piece of an upload that begins at an offset; None if the upload is gone.
ReadPiece = Callable[[str, int], Awaitable[UploadPiece | None]]


class _NoAnswer(Exception):
    """The ingress did not answer, but may answer the next time."""


async def read_from_ingress(upload_id: str, offset: int) -> UploadPiece | None:
    """Return a piece of an upload; None if the ingress does not have the upload any more.

    Raises:
        StageFailed: the ingress gave no answer.
    """
    try:
        again = async_retrying(TRIES, WAIT_S)
        return await again(_NoAnswer, _read_once, upload_id, offset)
    except _NoAnswer as exc:
        text = "The uploaded file could not be read from the node of the ingress."
        raise StageFailed(text, stage=Stage.DOWNLOAD) from exc


async def _read_once(upload_id: str, offset: int) -> UploadPiece | None:
    app_name = serve.get_replica_context().app_name
    handle = serve.get_deployment_handle("Ingress", app_name)
    try:
        async with asyncio.timeout(PIECE_S):
            piece: UploadPiece | None = await handle.read_upload.remote(
                upload_id, offset, PIECE_BYTES
            )
            return piece
    except (RayError, RayServeException, TimeoutError) as exc:
        logger.info("a piece of an upload was not read", extra={"error": type(exc).__name__})
        raise _NoAnswer from exc


async def copy_upload(
    read: ReadPiece, upload_id: str, target: Path, limits: DownloadLimits
) -> str | None:
    """Copy an upload to `target` piece by piece; return its SHA-256 in hex, None if it is gone.

    Raises:
        MediaTooLarge: it has more bytes than `limits` allow.
        StageFailed: it could not be read, or not as it was sent.
        OSError: it cannot be written.
    """
    part, offset = part_name(target), 0
    try:
        with Body(part, limits, "upload") as body:
            while (piece := await read(upload_id, offset)) is not None:
                await body.add(piece.data)
                offset += len(piece.data)
                if offset < piece.size_bytes and piece.data:
                    continue
                copied = await body.complete(target)
                if copied.sha256 != piece.sha256:
                    target.unlink()
                    raise StageFailed("The uploaded file was damaged.", stage=Stage.DOWNLOAD)
                return copied.sha256
    finally:
        part.unlink(missing_ok=True)
    return None
