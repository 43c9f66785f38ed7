"""Finished videos of the local store."""

import asyncio

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, Response

from serve_app.api.errors import RequestRejected
from serve_app.api.models.problems import read_problems
from serve_app.api.security import require_link_or_key
from serve_app.api.services import ServicesDep
from serve_app.contract.outcomes import rejected

router = APIRouter(tags=["results"], dependencies=[Depends(require_link_or_key)])

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_FILE = {"video/mp4": _BYTES, "application/json": {"schema": {"type": "object"}}}


@router.head("/files/{key:path}", include_in_schema=False)
@router.get(
    "/files/{key:path}",
    summary="Get a finished video or its sidecar",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": _FILE},
        206: {"description": "The bytes that `Range` names.", "content": _FILE},
        **read_problems(404, 416),
    },
)
async def files(key: str, services: ServicesDep) -> Response:
    """Return a stored video or its sidecar; `Range` is supported."""
    # In a thread, because a disk may stall.
    path = await asyncio.to_thread(services.files.resolve, key)
    if path is None:
        raise RequestRejected(rejected(404, "file_not_found", "There is no such file."))
    return FileResponse(path)
