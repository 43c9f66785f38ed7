"""The HTTP side of the ingress: routes and error shapes."""

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app.answers import generate_body
from serve_app.callers import CallerRules
from serve_app.gate import INGRESS_LIMITS, Gate
from serve_app.job import JobConflict, QueueFull, TooManyJoined
from serve_app.outcomes import invalid_request, state_unavailable
from serve_app.settings import API_VERSION
from serve_app.state_file import StateUnavailable

if TYPE_CHECKING:
    from serve_app.ingress import Ingress

RETRY_AFTER_S = 30
STATE_RETRY_AFTER_S = 5  # space and locks come back at any moment


class BadField(Exception):
    """A field has a value that only this worker can judge, and it is of no use here."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason.rstrip('.')}")
        self.field = field


def build_api(ingress: "Ingress") -> FastAPI:
    """Return the application whose routes are `ingress`'s methods."""
    api = FastAPI(
        title="Lip-sync",
        version=API_VERSION,
        description="A video and an audio in; the same video, its mouth speaking that audio, out.",
        exception_handlers={
            RequestValidationError: _on_invalid,
            BadField: _on_bad_field,
            JobConflict: _on_conflict,
            QueueFull: _on_full,
            TooManyJoined: _on_too_many_joined,
            StateUnavailable: _on_state_unavailable,
            400: _on_unreadable,
        },
    )
    rules = CallerRules.of(ingress.environment)
    api.add_middleware(Gate, judge=rules, limits=INGRESS_LIMITS)
    get, post, delete = ["GET"], ["POST"], ["DELETE"]
    # `path`: an id may hold slashes, encoded or not. The longer route has to come first.
    jobs, job = "/v1/avatar/jobs", "/v1/avatar/jobs/{job_id:path}"
    files = "/files/{key:path}"
    for path, methods, endpoint, summary in (
        ("/hc", get, ingress.hc, "Ready for a job?"),
        ("/health", get, ingress.health, "What is running"),
        ("/v1/ping", get, ingress.ping, "Who is there"),
        ("/v1/preflight", get, ingress.preflight, "Try every dependency"),
        ("/generate", post, ingress.generate, "Do a job and wait for it"),
        ("/v1/avatar/preview", post, ingress.preview, "One frame, to tune the options by"),
        (jobs, post, ingress.create_job, "Enter a job"),
        (jobs, get, ingress.list_jobs, "List jobs, newest first"),
        (job + "/events", get, ingress.job_events, "Follow a job (server-sent events)"),
        (job, get, ingress.get_job, "The state of a job"),
        (job, delete, ingress.cancel_job, "Cancel a job"),
        (files, get, ingress.files, "A finished video of the local store"),
    ):
        api.add_api_route(path, endpoint, methods=methods, summary=summary, response_model=None)
    for path, endpoint in (
        ("/hc", ingress.hc),
        ("/health", ingress.health),
        (files, ingress.files),
    ):
        api.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return api


async def _on_invalid(request: Request, exc: Exception) -> JSONResponse:
    """Say in the contract's words which field is wrong, without its value."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"The request is not valid: {field or 'body'}: {first['msg']}."
    return JSONResponse(generate_body("", invalid_request(message, field=field)), 422)


async def _on_bad_field(request: Request, exc: Exception) -> JSONResponse:
    """Say which field no worker can do anything with."""
    assert isinstance(exc, BadField)
    failure = invalid_request(f"The request is not valid: {exc}.", field=exc.field)
    return JSONResponse(generate_body("", failure), 422)


async def _on_unreadable(request: Request, exc: Exception) -> JSONResponse:
    """Answer a body that no parser accepts like any other bad input."""
    assert isinstance(exc, HTTPException)
    return JSONResponse(generate_body("", invalid_request("The body is not valid JSON.")), 422)


async def _on_conflict(request: Request, exc: Exception) -> JSONResponse:
    """Refuse an id that stands for something else."""
    message = "This id (or idempotency key) belongs to a job with different content. Use another."
    body = generate_body("", invalid_request(message))
    return JSONResponse(body | {"code": "job_conflict"}, 409)


async def _on_full(request: Request, exc: Exception) -> JSONResponse:
    """Ask the caller to come back."""
    body = generate_body("", invalid_request("The queue is full. Send the job again later."))
    body |= {"code": "queue_full", "error_type": "processing_error", "retryable": True}
    return JSONResponse(body, 429, headers={"Retry-After": str(RETRY_AFTER_S)})


async def _on_too_many_joined(request: Request, exc: Exception) -> JSONResponse:
    """Bound what one job has to keep."""
    message = "This job has as many webhooks or idempotency keys as one may have. Enter another."
    body = generate_body("", invalid_request(message))
    return JSONResponse(body | {"code": "too_many_joined"}, 409)


async def _on_state_unavailable(request: Request, exc: Exception) -> JSONResponse:
    """Ask the caller to come back when the registry can be used again."""
    failure = state_unavailable()
    headers = {"Retry-After": str(STATE_RETRY_AFTER_S)}
    return JSONResponse(generate_body("", failure), failure.status_code, headers=headers)
