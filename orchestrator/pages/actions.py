"""What the operator does on the pages, to jobs, their webhooks and workers.

Each is a form that belongs to the session. It leads back to a page that says what happened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request, Response

from orchestrator.pages.doors import PageRoute, Pages, PagesDep, SignedFormDep, redirect
from orchestrator.service.errors import of_store
from orchestrator.service.texts import MAX_ID_CHARS
from orchestrator.store.errors import StoreError, WrongState

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/do", route_class=PageRoute, include_in_schema=False)

WORKERS_QUERY = ("wanted_id", "wanted_tier", "wanted_state", "after")  # of the list to return to


@router.post("/cancel")
async def cancel(request: Request, pages: PagesDep, form: SignedFormDep) -> Response:
    """Cancel a job."""
    job_id = _id(form)
    said = await _change(pages, pages.services.store.cancel, job_id, "cancelled")
    return _to_job(request, pages, job_id, said)


@router.post("/retry")
async def retry(request: Request, pages: PagesDep, form: SignedFormDep) -> Response:
    """Put a job back into the queue."""
    job_id = _id(form)
    said = await _change(pages, pages.services.store.retry, job_id, "retried")
    pages.services.bell.ring()
    return _to_job(request, pages, job_id, said)


@router.post("/deliver")
async def deliver(request: Request, pages: PagesDep, form: SignedFormDep) -> Response:
    """Send a webhook of a job again."""
    job_id, delivery_id = _id(form), form.get("delivery", "")[:MAX_ID_CHARS]
    act = partial(pages.services.store.deliver_again, delivery_id=delivery_id)
    said = await _change(pages, act, job_id, "redelivered")
    pages.services.wake_deliveries()
    return _to_job(request, pages, job_id, said)


@router.post("/drain")
async def drain(request: Request, pages: PagesDep, form: SignedFormDep) -> Response:
    """Let a worker claim nothing more."""
    return await _drain(request, pages, form, is_drained=True)


@router.post("/undrain")
async def undrain(request: Request, pages: PagesDep, form: SignedFormDep) -> Response:
    """Let a worker claim again."""
    return await _drain(request, pages, form, is_drained=False)


async def _drain(
    request: Request, pages: Pages, form: dict[str, str], *, is_drained: bool
) -> Response:
    worker_id, run = _id(form), pages.services.run
    try:
        is_known = await run(pages.services.store.drain, worker_id, is_drained=is_drained)
    except StoreError as error:
        said = of_store(error).code
    else:
        done = "drained" if is_drained else "undrained"
        said = done if is_known else "worker_not_found"
        logger.info("worker %s", done, extra={"worker_id": worker_id})
    query = {name.removeprefix("wanted_"): form.get(name) for name in WORKERS_QUERY}
    return redirect(request, "/workers", **query, said=said)


async def _change(pages: Pages, act: Callable[[str], object], job_id: str, done: str) -> str:
    """Change a job. Return the name of what is to be said about it."""
    try:
        await pages.services.run(act, job_id)
    except WrongState:
        return f"not_{done}"
    except StoreError as error:
        return of_store(error).code
    logger.info("job %s", done, extra={"job_id": job_id})
    return done


def _to_job(request: Request, pages: Pages, job_id: str, said: str) -> Response:
    pages.services.news.tell(job_id)
    if said == "job_not_found":
        return redirect(request, "/jobs", said=said)
    return redirect(request, "/job", id=job_id, said=said)


def _id(form: dict[str, str]) -> str:
    return form.get("id", "")[:MAX_ID_CHARS]
