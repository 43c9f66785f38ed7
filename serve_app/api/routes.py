"""The HTTP side of the ingress: routes, and one shape of errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from musetalk_pipeline.errors import PipelineError
from serve_app.api.answers import generate_body
from serve_app.api.fields import shown_name, shown_path, unknown_field
from serve_app.config.settings import API_VERSION
from serve_app.contract.errors import error_body
from serve_app.contract.outcomes import (
    Failure,
    busy,
    failure_of,
    invalid_request,
    refused,
    state_unavailable,
)
from serve_app.contract.requests import JobRequest
from serve_app.gate.links import Links
from serve_app.gate.middleware import INGRESS_LIMITS, Gate
from serve_app.jobs.job import Job, JobConflict, QueueFull, TooManyJoined
from serve_app.jobs.state_file import StateUnavailable

if TYPE_CHECKING:
    from serve_app.api.ingress import Ingress

RETRY_AFTER_S = 30
STATE_RETRY_AFTER_S = 5  # space and locks come back at any moment
JSON_HINT = "Send one JSON object, with the header Content-Type: application/json."


class BadField(Exception):
    """A field has a value that only this worker can judge, and it is of no use here."""

    def __init__(self, field: str, reason: str, hint: str | None = None) -> None:
        super().__init__(f"{field}: {reason.rstrip('.')}")
        self.field, self.hint = field, hint


class RequestRefused(Exception):
    """A request that is answered with `failure`, whatever route it is for."""

    def __init__(self, failure: Failure, headers: dict[str, str] | None = None) -> None:
        super().__init__(failure.error_message)
        self.failure, self.headers = failure, headers


def build_api(ingress: "Ingress") -> FastAPI:
    """Return the application whose routes are `ingress`'s methods."""
    api = FastAPI(
        title="Lip-sync",
        version=API_VERSION,
        description="A video and an audio in; the same video, its mouth speaking that audio, out.",
        exception_handlers={
            RequestValidationError: _on_invalid,
            BadField: _on_bad_field,
            RequestRefused: _on_refused,
            JobConflict: _on_conflict,
            QueueFull: _on_full,
            TooManyJoined: _on_too_many_joined,
            StateUnavailable: _on_state_unavailable,
            PipelineError: _on_pipeline_error,
            HTTPException: _on_http_error,
            Exception: _on_crash,
        },
    )
    # The whole decision on who calls is made here; the proxy's gate cannot check links.
    api.add_middleware(Gate, judge=ingress.doorkeeper, limits=INGRESS_LIMITS)
    get, post, delete = ["GET"], ["POST"], ["DELETE"]
    # `path`: an id may hold slashes, encoded or not. The longer route has to come first.
    jobs, job = "/v1/avatar/jobs", "/v1/avatar/jobs/{job_id:path}"
    for path, methods, endpoint, summary in (
        ("/hc", get, ingress.hc, "Ready for a job?"),
        ("/health", get, ingress.health, "What is running"),
        ("/v1/ping", get, ingress.ping, "Who is there"),
        ("/v1/preflight", get, ingress.preflight, "Try every dependency"),
        ("/v1/avatar/preview", post, ingress.preview, "One frame, to tune the options by"),
        (jobs, post, ingress.create_job, "Enter a job"),
        (jobs, get, ingress.list_jobs, "List jobs, newest first"),
        (job + "/events", get, ingress.job_events, "Follow a job (server-sent events)"),
        (job, get, ingress.get_job, "The state of a job"),
        (job, delete, ingress.cancel_job, "Cancel a job"),
    ):
        api.add_api_route(path, endpoint, methods=methods, summary=summary, response_model=None)
    api.add_api_route(
        "/generate",
        ingress.generate,
        methods=post,
        summary="Do a job and wait for it",
        response_model=None,
        openapi_extra=_generate_schema(),
    )
    files = "/files/{key:path}"
    api.add_api_route(
        files, ingress.files, summary="A finished video of the local store", response_model=None
    )
    api.add_api_route("/hc", ingress.hc, methods=["HEAD"], include_in_schema=False)
    api.add_api_route("/health", ingress.health, methods=["HEAD"], include_in_schema=False)
    api.add_api_route(files, ingress.files, methods=["HEAD"], include_in_schema=False)
    return api


def _generate_schema() -> dict[str, Any]:
    """Describe what `POST /generate` understands; it is read leniently, so by no model."""
    schema = JobRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs")  # the same as those of the strict routes
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


def generate_answer(job: Job, links: Links, *, stack_traces: bool = False) -> JSONResponse:
    """Return the whole answer of `POST /generate` for a job that has ended."""
    assert job.outcome is not None
    if isinstance(job.outcome, Failure):
        return failure_answer(job.outcome, job.id, stack_traces=stack_traces)
    return JSONResponse(generate_body(job.id, job.outcome, job.warnings, links))


def failure_answer(
    failure: Failure,
    job_id: str = "",
    *,
    headers: dict[str, str] | None = None,
    stack_traces: bool = False,
) -> JSONResponse:
    """Return an error in the one shape that every route has."""
    body = error_body(job_id, failure, stack_trace=stack_traces)
    return JSONResponse(body, failure.status_code, headers=headers)


async def _on_invalid(request: Request, exc: Exception) -> JSONResponse:
    """Say in the contract's words which field is wrong, without its value."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    # Among several kinds of value pydantic puts the kind it tried at the end: no name of ours.
    where = [part for part in first["loc"] if part not in ("body", "constrained-str")]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it ends too early")
        text = f"The body is not valid JSON: {reason} at character {where[0] if where else 0}."
        return failure_answer(refused(422, "invalid_request", text, hint=JSON_HINT))
    if not where:
        return failure_answer(_no_object(request))
    field = shown_path(where)
    message = f"The request is not valid: {_complaint(first, where, field)}"
    return failure_answer(invalid_request(message, field=field))


def _no_object(request: Request) -> Failure:
    """Return the answer to a body that was not read as a JSON object, and why it was not."""
    kind = request.headers.get("content-type", "")
    is_json = "json" in kind.lower()
    why = "" if is_json else f", because its Content-Type is `{shown_name(kind or 'not given')}`"
    text = f"The body was not read as a JSON object{why}."
    return refused(422, "invalid_request", text, hint=JSON_HINT)


def _complaint(error: dict[str, Any], where: Sequence[object], field: str) -> str:
    if error["type"] == "extra_forbidden":
        return unknown_field(where)
    return f"{field}: {error['msg'].removeprefix('Value error, ')}."


async def _on_bad_field(request: Request, exc: Exception) -> JSONResponse:
    """Say which field no worker can do anything with."""
    assert isinstance(exc, BadField)
    message = f"The request is not valid: {exc}."
    return failure_answer(invalid_request(message, hint=exc.hint, field=exc.field))


async def _on_refused(request: Request, exc: Exception) -> JSONResponse:
    """Answer what a route itself refuses."""
    assert isinstance(exc, RequestRefused)
    return failure_answer(exc.failure, headers=exc.headers)


async def _on_conflict(request: Request, exc: Exception) -> JSONResponse:
    """Refuse an id that stands for something else."""
    message = "This id (or idempotency key) belongs to a job with different content. Use another."
    return failure_answer(refused(409, "job_conflict", message), str(exc))


async def _on_full(request: Request, exc: Exception) -> JSONResponse:
    """Ask the caller to come back."""
    message = "The queue is full. Send the job again later."
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return failure_answer(busy(429, "queue_full", message), headers=headers)


async def _on_pipeline_error(request: Request, exc: Exception) -> JSONResponse:
    """Answer what was found to be wrong before there was a job."""
    assert isinstance(exc, PipelineError)
    return failure_answer(failure_of(exc, {}))


async def _on_http_error(request: Request, exc: Exception) -> JSONResponse:
    """Give the framework's own refusals the one shape."""
    assert isinstance(exc, HTTPException)
    status, path = exc.status_code, shown_name(request.url.path)
    headers = dict(exc.headers) if exc.headers else None
    if status == 400:  # a body that no parser accepts is like any other bad input
        text = "The body is not valid JSON."
        failure = refused(422, "invalid_request", text, hint=JSON_HINT)
    elif status == 404:
        failure = refused(404, "not_found", f"There is nothing at {path}.")
    elif status == 405:
        text = f"{shown_name(request.method)} is not a method of {path}."
        failure = refused(405, "method_not_allowed", text)
    else:
        code = "body_too_large" if status == 413 else "invalid_request"
        failure = refused(status, code, str(exc.detail))
    return failure_answer(failure, headers=headers)


async def _on_crash(request: Request, exc: Exception) -> JSONResponse:
    """Answer for a fault of ours; the framework logs it once, with its trace."""
    text = f"The worker failed at this request ({type(exc).__name__})."
    failure = refused(500, "internal_error", text, error_type="processing_error", retryable=True)
    return failure_answer(failure)


async def _on_too_many_joined(request: Request, exc: Exception) -> JSONResponse:
    """Bound what one job has to keep."""
    message = "This job has as many webhooks or idempotency keys as one may have. Enter another."
    return failure_answer(refused(409, "too_many_joined", message))


async def _on_state_unavailable(request: Request, exc: Exception) -> JSONResponse:
    """Ask the caller to come back when the registry can be used again."""
    headers = {"Retry-After": str(STATE_RETRY_AFTER_S)}
    return failure_answer(state_unavailable(), headers=headers)
