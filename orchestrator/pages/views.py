"""The pages that show: the overview, the jobs, one job, the workers."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from orchestrator.job_api.lists import read_cursor, write_cursor
from orchestrator.pages.doors import PageRoute, PagesDep, redirect, signed_in
from orchestrator.pages.timeline import bars
from orchestrator.pages.words import origin_of
from orchestrator.service.scaling_loop import SCALING
from orchestrator.service.texts import MAX_ID_CHARS
from orchestrator.store.errors import JobNotFound
from orchestrator.store.overview import Overview, WorkerFilter, cost_of
from orchestrator.store.states import JobState
from orchestrator.store.values import JobFilter

router = APIRouter(
    route_class=PageRoute, include_in_schema=False, dependencies=[Depends(signed_in)]
)

JOBS_A_PAGE = 50
WORKERS_A_PAGE = 50
SHOWN_HERE = 10  # jobs of each list of the overview
DECISIONS_HERE = 6
DECISIONS = 100  # the newest
TIERS = ("main", "transient", "expensive", "buffer")
ENDED = tuple(state for state in JobState if state.is_terminal)

Word = Annotated[str, Query(max_length=MAX_ID_CHARS)]
StateName = Literal["", "queued", "running", "succeeded", "failed", "cancelled", "dead"]
Tier = Literal["", "main", "transient", "expensive", "buffer"]


@router.get("/")
async def overview_page(request: Request, pages: PagesDep) -> Response:
    """Show what waits and runs, who works, and what it costs."""
    run, store = pages.services.run, pages.services.store
    running = await run(store.page, JobFilter(states=(JobState.RUNNING,)), SHOWN_HERE)
    queued = await run(store.page, JobFilter(states=(JobState.QUEUED,)), SHOWN_HERE)
    ended = await run(store.page, JobFilter(states=ENDED), SHOWN_HERE)
    seen = await pages.overview()
    return pages.renderer.page(
        request,
        "overview.html",
        seen=seen,
        online=_online(seen),
        tiers=_by_tier(seen),
        active=running.jobs + queued.jobs,
        ended=ended.jobs,
        decisions=await run(store.decisions, DECISIONS_HERE),
    )


@router.get("/jobs")
async def jobs_page(
    request: Request,
    pages: PagesDep,
    id: Word = "",
    state: StateName = "",
    client: Word = "",
    worker: Word = "",
    cursor: Annotated[str, Query(max_length=400)] = "",
) -> Response:
    """List jobs, newest first. An id that is whole leads to its job."""
    run, store = pages.services.run, pages.services.store
    if id and not (state or client or worker or cursor) and await _is_job(pages, id):
        return redirect(request, "/job", id=id)
    which = JobFilter(
        client=client or None,
        states=(JobState(state),) if state else (),
        tried_by=worker or None,
        id_prefix=id or None,
    )
    found = await run(store.page, which, JOBS_A_PAGE, read_cursor(cursor or None))
    return pages.renderer.page(
        request,
        "jobs.html",
        jobs=found.jobs,
        wanted={"id": id, "state": state, "client": client, "worker": worker},
        is_first=not cursor,
        more=write_cursor(found.next_cursor),
        states=list(JobState),
        now=(await pages.overview()).now,
    )


@router.get("/job")
async def job_page(
    request: Request, pages: PagesDep, id: Annotated[str, Query(max_length=MAX_ID_CHARS)]
) -> Response:
    """Show one job with its attempts, its events and its result.

    The id is a parameter and not a part of the path, because an id may be `..` or have slashes,
    which browsers and proxies change in a path.
    """
    run, store = pages.services.run, pages.services.store
    job, events = await run(store.follow, id, 0)
    job = pages.services.shown(job)
    attempts = await run(store.attempts, id)
    now = max((await pages.overview()).now, job.updated_at)
    return pages.renderer.page(
        request,
        "job.html",
        media_origin=origin_of(job.output_url),
        job=job,
        events=events,
        attempts=attempts,
        deliveries=await run(store.deliveries, id),
        may_deliver=pages.services.deliveries is not None,
        bars=bars(job, attempts, now),
        now=now,
        cost=cost_of(job.receipt),
        may_retry=job.state in (JobState.FAILED, JobState.CANCELLED, JobState.DEAD),
    )


@router.get("/scaling")
async def scaling_page(request: Request, pages: PagesDep) -> Response:
    """Show what scaling sees, which workers it wants, and why."""
    run, store = pages.services.run, pages.services.store
    plan = pages.services.fleet_plan
    return pages.renderer.page(
        request,
        "scaling.html",
        is_on=bool(plan and plan.fleets),
        stepped=await run(store.loop_status, SCALING),
        decisions=await run(store.decisions, DECISIONS),
        now=(await pages.overview()).now,
    )


@router.get("/workers")
async def workers_page(
    request: Request,
    pages: PagesDep,
    id: Word = "",
    tier: Tier = "",
    state: Literal["", "online", "offline"] = "",
    after: Word = "",
) -> Response:
    """List workers, ordered by their ids."""
    run, store = pages.services.run, pages.services.store
    is_online = None if not state else state == "online"
    which = WorkerFilter(tier or None, is_online, id or None)
    found = await run(store.worker_page, which, WORKERS_A_PAGE, after or None)
    return pages.renderer.page(
        request,
        "workers.html",
        workers=found.workers,
        wanted={"id": id, "tier": tier, "state": state},
        after=after,
        more=found.next_after,
        tier_names=TIERS,
        now=(await pages.overview()).now,
    )


async def _is_job(pages: PagesDep, job_id: str) -> bool:
    try:
        await pages.services.run(pages.services.store.get, job_id)
    except JobNotFound:
        return False
    return True


def _online(seen: Overview) -> Counter[str]:
    """Return how many workers are busy, idle and draining, and how many that are: `all`."""
    found: Counter[str] = Counter()
    for count in seen.workers:
        if count.state != "offline":
            found[count.state] += count.workers
            found["all"] += count.workers
    return found


def _by_tier(seen: Overview) -> dict[str, Counter[str]]:
    """Return how many workers of each tier are in which state, tiers without workers left out."""
    found: dict[str, Counter[str]] = {}
    for tier in TIERS:
        counts = [count for count in seen.workers if count.worker_type == tier]
        if counts:
            found[tier] = Counter({count.state: count.workers for count in counts})
    return found
