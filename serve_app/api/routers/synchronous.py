"""The synchronous API: `POST /generate` waits for its job; a preview is one frame at once."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from musetalk_pipeline.boxes import Box
from orchestrator.store.errors import QueueFull
from serve_app.api.answers import generate_answer
from serve_app.api.errors import reject_if_stopping
from serve_app.api.fields import check_size, odd_size
from serve_app.api.models.jobs import GenerateResult
from serve_app.api.models.problems import sent_problems
from serve_app.api.routers.avatars import check_avatar
from serve_app.api.security import require_key
from serve_app.api.services import ServicesDep
from serve_app.api.upload_desk import check_uploads
from serve_app.contract.lenient import read_leniently
from serve_app.contract.requests import JobRequest, PreviewRequest
from serve_app.jobs.job import Origin, SubmissionOptions

router = APIRouter(tags=["synchronous"], dependencies=[Depends(require_key)])


_PICTURE: dict[str, Any] = {
    "description": "A PNG.",
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        "X-Face-Box": {"description": "x0,y0,x1,y1 in px.", "schema": {"type": "string"}},
        "X-Source-Frame": {
            "description": "The frame of the video that is shown.",
            "schema": {"type": "integer"},
        },
        "X-Faces": {
            "description": "x0,y0,x1,y1 of each face of that frame, with semicolons between them, "
            "in pixels of the video as it is displayed.",
            "schema": {"type": "string"},
        },
    },
}


def _generate_schema() -> dict[str, Any]:
    """Describe the body of `POST /generate`, which is read leniently and so has no model."""
    schema = JobRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs")  # the same as those of the strict routes
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


@router.post(
    "/generate",
    summary="Do a job and wait for it",
    response_model=GenerateResult,
    responses=sent_problems(404, 409),
    openapi_extra=_generate_schema(),
)
async def generate(
    http: Request,
    payload: Annotated[dict[str, Any], Body()],
    services: ServicesDep,
    salad_job_id: Annotated[str | None, Header(max_length=256)] = None,
) -> JSONResponse:
    """Return when the job has ended. If every waiting client disconnects, the job is cancelled.
    An option that is not understood is replaced by its default, with a sentence in `warnings`.
    """
    reject_if_stopping(services.availability.is_stopping)
    request, warnings = _read(payload, legacy_size_source=services.options.legacy_size_source)
    await check_avatar(services, request)
    await check_uploads(services, http.scope, *request.addresses)
    submission = SubmissionOptions(warnings=warnings, queue_job_id=salad_job_id)
    job = await services.jobs.submit(request, Origin.SYNC, submission)
    if job.is_terminal and services.reports is not None:
        await services.reports.report_again(job)
    with services.open_calls.one():
        job = await services.jobs.wait(job.id)
    links = services.links.for_request(http.scope)
    return generate_answer(job, links, stack_traces=services.options.stack_traces)


def _read(
    payload: dict[str, Any], *, legacy_size_source: bool
) -> tuple[JobRequest, tuple[str, ...]]:
    try:
        request, warnings = read_leniently(
            payload, legacy_size_source=legacy_size_source, accepts_uploads=True
        )
    except ValidationError as exc:
        raise RequestValidationError(exc.errors(include_url=False)) from exc
    return request, warnings + odd_size(request.resolution)


@router.post(
    "/v1/avatar/preview",
    summary="Get one frame, to choose options",
    response_class=Response,
    responses={200: _PICTURE, **sent_problems(409)},
)
async def preview(http: Request, request: PreviewRequest, services: ServicesDep) -> Response:
    """Return one composited frame (PNG); `X-Face-Box` is x0,y0,x1,y1 in px.

    `X-Faces` has such a box for each face of the frame `X-Source-Frame`, the largest first and with
    a semicolon between them, in pixels of the video as it is displayed: where `params.face` can
    point.
    """
    check_size(request.aspect_ratio, request.resolution)
    await check_uploads(services, http.scope, *request.addresses)
    if services.previews.locked():
        raise QueueFull
    async with services.previews:
        made = await services.jobs.preview(request)
    headers = {
        "X-Face-Box": _sides(made.box),
        "X-Source-Frame": str(made.source_frame),
        "X-Faces": ";".join(map(_sides, made.faces)),
    }
    return Response(made.png, media_type="image/png", headers=headers)


def _sides(box: Box) -> str:
    return f"{box.x0},{box.y0},{box.x1},{box.y1}"
