"""Finished videos of the local store."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, Response

from orchestrator.store.errors import StoreUnavailable
from serve_app.api.errors import RequestRejected
from serve_app.api.file_names import content_disposition, file_name
from serve_app.api.models.problems import read_problems
from serve_app.api.security import require_link_or_key
from serve_app.api.services import Services, ServicesDep
from serve_app.contract.outcomes import rejected
from serve_app.gate.file_pieces import requested_range
from serve_app.outputs.store import SIDECAR_SUFFIX

router = APIRouter(tags=["results"], dependencies=[Depends(require_link_or_key)])

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_FILE = {
    "content": {"video/mp4": _BYTES, "application/json": {"schema": {"type": "object"}}},
    "headers": {
        "Content-Disposition": {
            "description": "The name of the file.",
            "schema": {"type": "string"},
        }
    },
}


@router.head("/files/{key:path}", include_in_schema=False)
@router.get(
    "/files/{key:path}",
    summary="Get a finished video or its sidecar",
    response_class=Response,
    responses={
        200: {"description": "The file.", **_FILE},
        206: {"description": "The bytes that `Range` names.", **_FILE},
        **read_problems(404, 416),
    },
)
async def files(
    http: Request,
    key: str,
    services: ServicesDep,
    download: Annotated[bool, Query(description="Whether a browser saves or shows it.")] = False,
) -> Response:
    """Return a stored video or its sidecar. `Range` is supported. The file is named by `name` of
    the job's metadata, else by the job's id.
    """
    # In a thread, because a disk may stall.
    path = await asyncio.to_thread(services.files.resolve, key)
    if path is None:
        raise RequestRejected(rejected(404, "file_not_found", "There is no such file."))
    _check_range(http, await asyncio.to_thread(lambda: path.stat().st_size))
    name = await _name(services, path)
    headers = {
        "Content-Disposition": content_disposition(name, "attachment" if download else "inline"),
        "X-Content-Type-Options": "nosniff",
    }
    return FileResponse(path, headers=headers)


def _check_range(http: Request, n_bytes: int) -> None:
    """Reject a range that the file does not have, and forget one that is not understood, which
    counts as none (RFC 9110, 14.2).
    """
    headers = http.scope["headers"]
    requested = requested_range(headers)
    if requested.whole:
        http.scope["headers"] = [(name, value) for name, value in headers if name != b"range"]
    elif "if-range" not in http.headers and requested.start >= n_bytes:
        text = f"The file has {n_bytes} bytes, and the range begins after its end."
        wrong = rejected(416, "range_wrong", text)
        raise RequestRejected(wrong, {"Content-Range": f"bytes */{n_bytes}"})


async def _name(services: Services, path: Path) -> str:
    """Return a name for a file, as far as its job is still known."""
    job_id = await asyncio.to_thread(_job_id, path)
    metadata = None
    with suppress(StoreUnavailable):
        job = await services.jobs.get(job_id)
        metadata = None if job is None else job.metadata
    return file_name(job_id, metadata, path.suffix)


def _job_id(path: Path) -> str:
    """Return the id of the job of a file: its sidecar has it, if the name cannot."""
    with suppress(OSError, ValueError, LookupError):
        return str(json.loads(path.with_suffix(SIDECAR_SUFFIX).read_bytes())["musetalk_job_id"])
    return path.stem
