"""Signing in with the admin key, and out."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from orchestrator.pages.doors import (
    COOKIE,
    FormDep,
    PageRoute,
    Pages,
    PagesDep,
    SessionDep,
    SignedFormDep,
    redirect,
)
from orchestrator.pages.sessions import SESSION_S

logger = logging.getLogger(__name__)

router = APIRouter(route_class=PageRoute, include_in_schema=False)

MAX_NEXT_CHARS = 2000
NO_KEY = "Nobody can sign in yet. Set ORCHESTRATOR_ADMIN_KEY and start the service again."
WRONG = "This is not the admin key. It is the value of ORCHESTRATOR_ADMIN_KEY."
TOO_MANY = "Too many wrong keys were tried from this address. Try again in {} s."

Next = Annotated[str, Query(max_length=MAX_NEXT_CHARS)]


@router.get("/sign-in")
async def sign_in_page(request: Request, pages: PagesDep, next: Next = "") -> Response:
    """Return the form, or lead on if there is a session."""
    if pages.sessions.read(request.cookies.get(COOKIE)) is not None:
        return redirect(request, _own(next))
    return _form(request, pages, next, None if pages.has_key else NO_KEY)


@router.post("/sign-in")
async def sign_in(request: Request, pages: PagesDep, form: FormDep) -> Response:
    """Open a session if the key is right."""
    next_page = form.get("next", "")[:MAX_NEXT_CHARS]
    address = request.client.host if request.client else ""
    wait_s = pages.wrong_keys.seconds_left(address)
    if wait_s:
        page = _form(request, pages, next_page, TOO_MANY.format(wait_s), 429)
        page.headers["Retry-After"] = str(wait_s)
        return page
    if not pages.services.access.is_admin_key(form.get("key", "").strip()):
        pages.wrong_keys.wait_s(address)
        logger.warning("a wrong admin key was tried", extra={"address": address})
        return _form(request, pages, next_page, WRONG if pages.has_key else NO_KEY, 403)
    logger.info("the operator signed in", extra={"address": address})
    answer = redirect(request, _own(next_page))
    answer.set_cookie(
        COOKIE,
        pages.sessions.open(),
        max_age=SESSION_S,
        path=request.scope.get("root_path", "") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/sign-out")
async def sign_out(
    request: Request, pages: PagesDep, session: SessionDep, form: SignedFormDep
) -> Response:
    """Close the session."""
    pages.sessions.close(session)
    answer = redirect(request, "/sign-in")
    answer.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")
    return answer


def _form(
    request: Request, pages: Pages, next_page: str, problem: str | None, status: int = 200
) -> Response:
    return pages.renderer.page(
        request, "sign_in.html", status=status, next=next_page, problem=problem
    )


def _own(next_page: str) -> str:
    """Return the page to go on with, which is one of this site whatever the form says."""
    is_own = next_page.startswith("/") and not next_page.startswith(("//", "/\\"))
    is_plain = next_page.isprintable() and next_page.isascii()
    return next_page if is_own and is_plain else "/"
