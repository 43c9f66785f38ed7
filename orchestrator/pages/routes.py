"""Adds the pages, and what they load, to an application."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Response

from orchestrator.pages import actions, live, sign_in, views
from orchestrator.pages.doors import PageRoute, Pages, PagesDep
from orchestrator.service.errors import Rejected
from orchestrator.service.services import Services

router = APIRouter(prefix="/assets", route_class=PageRoute, include_in_schema=False)

YEAR_S = 365 * 24 * 3600  # an asset's address changes with its content


def add_pages(app: FastAPI, services: Services) -> None:
    """Serve the pages next to the API."""
    app.state.pages = Pages(services)
    for each in (router, sign_in.router, live.router, actions.router, views.router):
        app.include_router(each)


@router.get("/{name}")
async def asset(name: str, pages: PagesDep) -> Response:
    """Return a file that pages load. It needs no session, as the sign-in has the same looks."""
    found = pages.renderer.assets.get(name)
    if found is None:
        raise Rejected(404, "not_found", "There is no such file.")
    headers = {
        "Cache-Control": f"public, max-age={YEAR_S}, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(found.content, media_type=found.media_type, headers=headers)
