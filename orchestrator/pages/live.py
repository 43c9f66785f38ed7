"""Tells open pages that something has changed. They then load themselves again and show it.

The stream has no content, so that each page, whatever it lists, is made in one place only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import format_sse_event

from orchestrator.job_api.event_stream import EventStream
from orchestrator.pages.doors import COOKIE, PageRoute, Pages, PagesDep
from orchestrator.service.texts import MAX_ID_CHARS

router = APIRouter(route_class=PageRoute, include_in_schema=False)

MAX_VIEWERS = 50
MIN_PAUSE_S = 1.0  # between two events, whatever happens
QUIET_S = 5.0  # then a page is loaded again for what no news tells of: heartbeats, and time
MAX_STREAM_S = 3600.0  # the browser then connects again, if its session lasts


@router.get("/live")
async def live(
    request: Request,
    pages: PagesDep,
    job: Annotated[str | None, Query(max_length=MAX_ID_CHARS)] = None,
) -> Response:
    """Send `changed` whenever a job, or the one that is named, has changed."""
    if pages.sessions.read(request.cookies.get(COOKIE)) is None:
        return Response(status_code=401)
    if pages.viewers >= MAX_VIEWERS:
        return Response(status_code=503, headers={"Retry-After": "30"})
    return EventStream(_changes(pages, job))


async def _changes(pages: Pages, job_id: str | None) -> AsyncGenerator[bytes, None]:
    services, loop = pages.services, asyncio.get_running_loop()
    until = loop.time() + MAX_STREAM_S
    changed, close = services.news.open(job_id)
    pages.viewers += 1
    try:
        while loop.time() < until and not services.is_stopping.is_set():
            # Cleared before the page is told, so that no change in between is lost.
            changed.clear()
            yield format_sse_event(data_str="", event="changed")
            await _wait(services.is_stopping, MIN_PAUSE_S)
            await _wait(changed, QUIET_S - MIN_PAUSE_S)
    finally:
        pages.viewers -= 1
        close()


async def _wait(event: asyncio.Event, at_most_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            await event.wait()
