"""The routes of batches (docs/api.md), over what a service can do with them.

    router = batch_router(a_dependency_that_returns_a_BatchBoard, BatchCreate, Problem)

Both services have these routes, as they have those of jobs (routes.py).
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, Path, Request, params
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from orchestrator.job_api.batches import Batch
from orchestrator.job_api.bodies import BATCHES_PATH
from orchestrator.job_api.described import LOCATION, READ, SENT, Done, problems_of
from orchestrator.job_api.routes import Body, Key

Create = TypeVar("Create", bound=BaseModel, contravariant=True)


class BatchBoard(Protocol[Create]):
    """What one caller may do with batches. Bodies are those of `batch_body`."""

    async def submit(self, create: Create, idempotency_key: str | None) -> Body:
        """Queue all jobs of a batch or none, or return the batch that the key belongs to."""
        ...

    async def get(self, batch_id: str) -> Body:
        """Return a batch."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """End every job of a batch that waits or runs."""
        ...


BoardOf = Callable[..., Awaitable[BatchBoard[Any]]]
BatchId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


def batch_router(
    board_of: BoardOf,
    create_model: type[BaseModel],
    problem: type[BaseModel],
    dependencies: Sequence[params.Depends] = (),
) -> APIRouter:
    """Return the routes.

    Args:
        board_of: a dependency that admits the caller and returns its board.
        create_model: the body of a submission.
        problem: the model of an error.
    """
    router = APIRouter(prefix=BATCHES_PATH, tags=["batches"], dependencies=list(dependencies))
    _add_submission(router, board_of, create_model, problem)
    _add_batch(router, board_of, problem)
    return router


def _add_submission(
    router: APIRouter,
    board_of: BoardOf,
    create_model: type[BaseModel],
    problem: type[BaseModel],
) -> None:
    async def create_batch(
        http: Request,
        create: Any,
        board: Annotated[BatchBoard[Any], Depends(board_of)],
        idempotency_key: Key = None,
    ) -> JSONResponse:
        """Return at once. All jobs are accepted, or none is, and the error names the one at fault.
        The same `Idempotency-Key`, with the same content, gives the same batch.
        """
        body = await board.submit(create, idempotency_key)
        location = f"{http.scope['path']}/{body['id']}"
        return JSONResponse(body, 202, headers={"Location": location})

    # FastAPI reads models from annotations, and this model differs by service.
    create_batch.__annotations__["create"] = create_model
    router.post(
        "",
        status_code=202,
        summary="Submit many jobs at once",
        response_model=Batch,
        responses={202: {"headers": LOCATION}, **problems_of(problem, *SENT, 404, 409)},
    )(create_batch)


def _add_batch(router: APIRouter, board_of: BoardOf, problem: type[BaseModel]) -> None:
    @router.get(
        "/{batch_id}",
        summary="Get a batch",
        response_model=Batch,
        responses=problems_of(problem, *READ, 404),
    )
    async def get_batch(
        batch_id: BatchId, board: Annotated[BatchBoard[Any], Depends(board_of)]
    ) -> JSONResponse:
        """Return how far a batch is, and its jobs in short."""
        return JSONResponse(await board.get(batch_id))

    @router.delete(
        "/{batch_id}",
        summary="Cancel a batch",
        response_model=Done,
        responses=problems_of(problem, *READ, 404, 409),
    )
    async def cancel_batch(
        batch_id: BatchId, board: Annotated[BatchBoard[Any], Depends(board_of)]
    ) -> JSONResponse:
        """Request the end of every job of a batch that waits or runs; 409 if all have ended."""
        await board.cancel(batch_id)
        return JSONResponse({"detail": "Cancellation requested"})
