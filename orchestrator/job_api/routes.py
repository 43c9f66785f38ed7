"""The routes of the job API (docs/protocol.md §3), over what a service can do with jobs.

    router = job_router(a_dependency_that_returns_a_JobBoard, JobCreate)

Both services have these routes; each has errors of its own for what a board refuses, with the same
codes. Bodies are the board's, since an orchestrator and a worker know different things about a job.
"""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Path, Query, Request, params
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from orchestrator.job_api.deliveries import Deliveries, Delivery
from orchestrator.job_api.described import LOCATION, Done, JobModels
from orchestrator.job_api.event_stream import EventStream, read_event_id
from orchestrator.job_api.lists import JobQuery, QueryText

PREFIX = "/v1/avatar/jobs"
MAX_ID_CHARS = 256

Create = TypeVar("Create", bound=BaseModel, contravariant=True)
Listed = TypeVar("Listed", bound=JobQuery, contravariant=True)
Body = dict[str, Any]


class JobBoard(Protocol[Create, Listed]):
    """What one caller may do with jobs. Every body has an `id`."""

    async def submit(self, job_id: str, create: Create, idempotency_key: str | None) -> Body:
        """Queue a job, or join the same one; `job_id` is the caller's id or a new one."""
        ...

    async def page(self, query: Listed) -> Body:
        """Return a page of jobs, newest first."""
        ...

    async def get(self, job_id: str) -> Body:
        """Return a job."""
        ...

    async def follow(self, job_id: str, number: int) -> AsyncGenerator[bytes, None]:
        """Return the events of a job after event `number`, encoded."""
        ...

    async def retry(self, job_id: str) -> Body:
        """Queue a job again that has ended without a result."""
        ...

    async def cancel(self, job_id: str) -> None:
        """End a queued or running job."""
        ...

    async def deliveries(self, job_id: str) -> Body:
        """Return the log of a job's webhooks."""
        ...

    async def deliver_again(self, job_id: str, delivery_id: str) -> Body:
        """Queue the delivery of a webhook again."""
        ...


_EVENTS: dict[str, Any] = {
    "description": "Events, each with the job as its data.",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'id: 3\nevent: progress\ndata: {"id": "job-1", "status": "running"}\n\n',
        }
    },
}
BoardOf = Callable[..., Awaitable[JobBoard[Any, Any]]]
# `path`: an id may contain slashes, encoded or not. The longer routes have to come first.
JobId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)]
Key = Annotated[QueryText | None, Header(min_length=1, max_length=256)]


def job_router(
    board_of: BoardOf,
    create_model: type[BaseModel],
    models: JobModels,
    query_model: type[JobQuery] = JobQuery,
    dependencies: Sequence[params.Depends] = (),
) -> APIRouter:
    """Return the routes.

    Args:
        board_of: a dependency that admits the caller and returns its board.
        create_model: the body of a submission. Its `musetalk_job_id` is the caller's id or None.
        models: what the document says about the answers.
        query_model: the query of a list.
    """
    router = APIRouter(prefix=PREFIX, tags=["jobs"], dependencies=list(dependencies))
    _add_collection(router, board_of, create_model, models, query_model)
    _add_events(router, board_of, models)
    _add_deliveries(router, board_of, models)
    _add_retry(router, board_of, models)
    _add_job(router, board_of, models)
    return router


def _add_collection(
    router: APIRouter,
    board_of: BoardOf,
    create_model: type[BaseModel],
    models: JobModels,
    query_model: type[JobQuery],
) -> None:
    async def create_job(
        http: Request,
        create: Any,
        board: Annotated[JobBoard[Any, Any], Depends(board_of)],
        idempotency_key: Key = None,
    ) -> JSONResponse:
        """Return at once. The same id or `Idempotency-Key`, with the same content, gives the same
        job.
        """
        job_id = create.musetalk_job_id or uuid.uuid4().hex
        body = await board.submit(job_id, create, idempotency_key)
        location = f"{http.scope['path']}/{quote(body['id'], safe='')}"
        return JSONResponse(body, 202, headers={"Location": location})

    async def list_jobs(
        query: Any, board: Annotated[JobBoard[Any, Any], Depends(board_of)]
    ) -> JSONResponse:
        """Return one page; pass its `next_cursor` as `cursor` to get the next one."""
        return JSONResponse(await board.page(query))

    # FastAPI reads models from annotations, and these models differ by service.
    create_job.__annotations__["create"] = create_model
    list_jobs.__annotations__["query"] = Annotated[query_model, Query()]
    router.post(
        "",
        status_code=202,
        summary="Submit a job",
        response_model=models.job,
        responses={202: {"headers": LOCATION}, **models.sent(404, 409)},
    )(create_job)
    router.get(
        "",
        summary="List jobs, newest first",
        response_model=models.page,
        responses=models.read(),
    )(list_jobs)


def _add_events(router: APIRouter, board_of: BoardOf, models: JobModels) -> None:
    @router.get(
        "/{job_id:path}/events",
        summary="Follow a job (server-sent events)",
        # FastAPI would give the class's media type to the errors, too.
        response_class=Response,
        responses={200: _EVENTS, **models.read(404)},
    )
    async def job_events(
        job_id: JobId,
        board: Annotated[JobBoard[Any, Any], Depends(board_of)],
        last_event_id: Annotated[str | None, Header(max_length=64)] = None,
    ) -> EventStream:
        """Send `progress` events, one for each change among them, then one `end` event."""
        return EventStream(await board.follow(job_id, read_event_id(last_event_id)))


def _add_deliveries(router: APIRouter, board_of: BoardOf, models: JobModels) -> None:
    @router.get(
        "/{job_id:path}/deliveries",
        summary="List the webhooks of a job",
        response_model=Deliveries,
        responses=models.read(404),
    )
    async def list_deliveries(
        job_id: JobId, board: Annotated[JobBoard[Any, Any], Depends(board_of)]
    ) -> JSONResponse:
        """Return every delivery with its status, the newest tries with their answers, and the next
        one.
        """
        return JSONResponse(await board.deliveries(job_id))

    @router.post(
        "/{job_id:path}/deliveries/{delivery_id}/retry",
        summary="Send a webhook again",
        response_model=Delivery,
        responses=models.sent(404),
    )
    async def deliver_again(
        job_id: JobId,
        delivery_id: Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)],
        board: Annotated[JobBoard[Any, Any], Depends(board_of)],
    ) -> JSONResponse:
        """Queue a delivery again, with the same `webhook-id`, whatever became of it."""
        return JSONResponse(await board.deliver_again(job_id, delivery_id))


def _add_retry(router: APIRouter, board_of: BoardOf, models: JobModels) -> None:
    @router.post(
        "/{job_id:path}/retry",
        summary="Queue an ended job again",
        response_model=models.job,
        responses=models.sent(404, 409),
    )
    async def retry_job(
        job_id: JobId, board: Annotated[JobBoard[Any, Any], Depends(board_of)]
    ) -> JSONResponse:
        """Start the next run of a job that has failed or was cancelled; else 409."""
        return JSONResponse(await board.retry(job_id))


def _add_job(router: APIRouter, board_of: BoardOf, models: JobModels) -> None:
    @router.get(
        "/{job_id:path}",
        summary="Get a job",
        response_model=models.job,
        responses=models.read(404),
    )
    async def get_job(
        job_id: JobId, board: Annotated[JobBoard[Any, Any], Depends(board_of)]
    ) -> JSONResponse:
        """Return a job, however it was submitted."""
        return JSONResponse(await board.get(job_id))

    @router.delete(
        "/{job_id:path}",
        summary="Cancel a job",
        response_model=Done,
        responses=models.read(404, 409),
    )
    async def cancel_job(
        job_id: JobId, board: Annotated[JobBoard[Any, Any], Depends(board_of)]
    ) -> JSONResponse:
        """Request the end of a queued or running job; 409 if it has ended."""
        await board.cancel(job_id)
        return JSONResponse({"detail": "Cancellation requested"})
