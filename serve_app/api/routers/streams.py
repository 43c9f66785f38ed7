"""Jobs that are watched while they are made: HLS."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import FileResponse, Response

from orchestrator.job_api.routes import PREFIX, JobId
from serve_app.api.errors import RequestRejected
from serve_app.api.models.problems import read_problems
from serve_app.api.security import require_stream_link_or_key
from serve_app.api.services import ServicesDep
from serve_app.contract.outcomes import rejected
from serve_app.gate.signed_paths import STREAM_FOLDER, STREAM_PLAYLIST
from serve_app.streams.playlist import CONTENT_TYPE
from serve_app.streams.streams import Streams

READY_RETRY_S = 1

router = APIRouter(
    prefix=PREFIX, tags=["streams"], dependencies=[Depends(require_stream_link_or_key)]
)

_GONE = read_problems(404, 409, 410)
_PLAYLIST = {CONTENT_TYPE: {"schema": {"type": "string"}}}
_PART = {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}

Number = Annotated[int, Path(ge=0, lt=10**9)]


def _streams(services: ServicesDep) -> Streams:
    if services.streams is None:
        raise RequestRejected(rejected(409, "streams_off", "This worker makes no streams."))
    return services.streams


StreamsDep = Annotated[Streams, Depends(_streams)]


@router.head("/{job_id:path}/" + STREAM_PLAYLIST, include_in_schema=False)
@router.get(
    "/{job_id:path}/" + STREAM_PLAYLIST,
    summary="Watch a job (HLS)",
    response_class=Response,
    responses={200: {"description": "The playlist.", "content": _PLAYLIST}, **_GONE},
)
async def stream_playlist(
    http: Request,
    job_id: JobId,
    services: ServicesDep,
    streams: StreamsDep,
    number: Annotated[int | None, Query(ge=0, lt=10**9)] = None,
) -> Response:
    """Return an HLS playlist of what has been made so far; it grows until the job ends.

    Every attempt at a job has a stream of its own. `number` in a `stream_url` says which one it is;
    without it, the stream is that of the newest attempt.
    """
    job = await services.jobs.get(job_id)
    if job is None:
        raise RequestRejected(rejected(404, "job_not_found", "There is no such job."))
    is_newest = number is None or number == job.number
    stream = streams.find(job_id, job.number) if is_newest else None
    if stream is None:
        raise _gone(job_id) if job.is_terminal or not is_newest else _not_ready(job_id)
    # A player that came with a link gets its fragments by the same link.
    link = "&".join(
        part for part in http.url.query.split("&") if part.startswith(("expires=", "signature="))
    )
    folder = f"{STREAM_FOLDER}/{stream.number}/"
    text = stream.playlist(folder, f"?{link}" if link else "")
    return Response(text, media_type=CONTENT_TYPE, headers={"Cache-Control": "no-cache"})


@router.head("/{job_id:path}/" + STREAM_FOLDER + "/{number}/{name}", include_in_schema=False)
@router.get(
    "/{job_id:path}/" + STREAM_FOLDER + "/{number}/{name}",
    summary="Get a part of a stream",
    response_class=Response,
    responses={
        200: {"description": "The part.", "content": _PART},
        206: {"description": "The bytes that `Range` names.", "content": _PART},
        **read_problems(404, 409, 410, 416),
    },
)
async def stream_part(
    job_id: JobId, number: Number, name: str, streams: StreamsDep
) -> FileResponse:
    """Return the init section or a fragment that the playlist names; `Range` is supported."""
    stream = streams.find(job_id, number)
    path = None if stream is None else stream.file(name)
    # In a thread, because a disk may stall.
    if path is None or not await asyncio.to_thread(path.is_file):
        raise _gone(job_id)
    headers = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(path, media_type="video/mp4", headers=headers)


def _gone(job_id: str) -> RequestRejected:
    text = "This stream is no longer here: its job was started again, or ended some time ago."
    return RequestRejected(rejected(410, "stream_gone", text), job_id=job_id)


def _not_ready(job_id: str) -> RequestRejected:
    text = "Nothing of this job can be played yet."
    failure = rejected(404, "stream_not_ready", text, retryable=True)
    return RequestRejected(failure, {"Retry-After": str(READY_RETRY_S)}, job_id=job_id)
