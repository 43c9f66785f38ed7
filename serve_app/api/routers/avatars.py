"""Avatars: prepare one ahead of the jobs that use it, list, read and delete those that are kept."""

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import JSONResponse

from orchestrator.job_api.described import LOCATION, Done
from serve_app.api.answers import job_body
from serve_app.api.errors import RequestRejected, reject_if_stopping
from serve_app.api.fields import check_size
from serve_app.api.models.avatars import Avatar, AvatarList
from serve_app.api.models.jobs import Job
from serve_app.api.models.problems import read_problems, sent_problems
from serve_app.api.security import require_key
from serve_app.api.services import Services, ServicesDep
from serve_app.api.upload_desk import check_uploads
from serve_app.avatars.shelf import AvatarShelf, KeptAvatar
from serve_app.contract.outcomes import rejected
from serve_app.contract.requests import AVATAR_ID, AvatarCreate, JobRequest
from serve_app.jobs.job import Origin, SubmissionOptions

router = APIRouter(prefix="/v1/avatars", tags=["avatars"], dependencies=[Depends(require_key)])

AvatarId = Annotated[str, Path(pattern=f"^{AVATAR_ID}$")]


def _shelf(services: ServicesDep) -> AvatarShelf:
    if services.avatars is None:
        raise RequestRejected(rejected(409, "avatars_off", "This worker keeps no avatars."))
    return services.avatars


Shelf = Annotated[AvatarShelf, Depends(_shelf)]


@router.post(
    "",
    status_code=202,
    summary="Prepare an avatar",
    response_model=Job,
    responses={202: {"headers": LOCATION}, **sent_problems(409)},
)
async def create_avatar(
    http: Request, create: AvatarCreate, services: ServicesDep, shelf: Shelf
) -> JSONResponse:
    """Return at once with a job, which is followed like any other. When it has succeeded, its
    `metrics.avatar_id` names the avatar.
    """
    reject_if_stopping(services.availability.is_stopping)
    warnings = check_size(create.aspect_ratio, create.resolution)
    request = create.request(create.musetalk_job_id or uuid.uuid4().hex)
    await check_uploads(services, http.scope, *request.addresses)
    submission = SubmissionOptions(warnings=warnings)
    job = await services.jobs.submit(request, Origin.ASYNC, submission)
    prefix = http.scope["path"].removesuffix(router.prefix)
    location = {"Location": f"{prefix}/v1/avatar/jobs/{quote(job.id, safe='')}"}
    body = job_body(job, services.links.for_request(http.scope))
    return JSONResponse(body, status_code=202, headers=location)


@router.get(
    "",
    summary="List avatars, the most recently used first",
    response_model=AvatarList,
    responses=read_problems(409),
)
async def list_avatars(shelf: Shelf) -> JSONResponse:
    """Return all avatars that are kept on the node of the ingress."""
    avatars = await asyncio.to_thread(shelf.list)
    return JSONResponse({"avatars": [_body(avatar) for avatar in avatars]})


@router.get(
    "/{avatar_id}",
    summary="Get an avatar",
    response_model=Avatar,
    responses=read_problems(404, 409),
)
async def get_avatar(avatar_id: AvatarId, shelf: Shelf) -> JSONResponse:
    """Return one avatar."""
    return JSONResponse(_body(await _found(shelf, avatar_id)))


@router.delete(
    "/{avatar_id}",
    summary="Delete an avatar",
    response_model=Done,
    responses=read_problems(404, 409),
)
async def delete_avatar(avatar_id: AvatarId, shelf: Shelf) -> JSONResponse:
    """Remove an avatar and its shared copy. Jobs that are using it go on."""
    await _found(shelf, avatar_id)
    await asyncio.to_thread(shelf.delete, avatar_id)
    return JSONResponse({"detail": "Avatar deleted"})


async def check_avatar(services: Services, request: JobRequest) -> None:
    """Check that the avatar that a job names can be used.

    Raises:
        RequestRejected: it is not here, or its video is not.
    """
    if request.avatar_id is None:
        return
    avatar = await _found(_shelf(services), request.avatar_id)
    if not avatar.has_video:
        text = "The video of this avatar is not kept, so a job cannot name the avatar."
        raise RequestRejected(rejected(409, "avatar_without_video", text))


async def _found(shelf: AvatarShelf, avatar_id: str) -> KeptAvatar:
    avatar = await asyncio.to_thread(shelf.get, avatar_id)
    if avatar is None:
        raise RequestRejected(rejected(404, "avatar_not_found", "There is no such avatar here."))
    return avatar


def _body(avatar: KeptAvatar) -> dict[str, Any]:
    about = avatar.about
    return {
        "id": avatar.avatar_id,
        "video_sha256": about.video_sha256,
        "engine": about.engine,
        "model_version": about.model_version,
        "landmarks": about.landmarks,
        "width": about.width,
        "height": about.height,
        "fps": about.fps,
        "frames": about.frames,
        "prepared_frames": avatar.prepared_frames,
        "duration_s": about.duration_s,
        "size_bytes": avatar.size_bytes,
        "has_video": avatar.has_video,
        "last_used_at": datetime.fromtimestamp(avatar.last_used, UTC).isoformat(
            timespec="milliseconds"
        ),
    }
