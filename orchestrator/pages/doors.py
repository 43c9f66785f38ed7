"""What every page needs: a session, forms of this site only, and errors that are pages too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from orchestrator.pages.rendering import Renderer
from orchestrator.pages.sessions import Session, Sessions
from orchestrator.service.errors import HINTS, Rejected, of_store
from orchestrator.service.rate_limits import RateLimits
from orchestrator.service.services import Services
from orchestrator.store.errors import StoreError
from orchestrator.store.overview import Overview

COOKIE = "orchestrator_session"
WRONG_KEYS_PER_MINUTE = 10  # from one address
OVERVIEW_S = 2.0  # for so long, all pages show the same counts
MAX_FIELDS = 20


class Pages:
    """What the pages share, built once at the start."""

    def __init__(self, services: Services) -> None:
        key = services.settings.admin_api_key
        self.services = services
        self.has_key = key is not None
        self.sessions = Sessions(None if key is None else key.get_secret_value())
        self.renderer = Renderer()
        self.wrong_keys = RateLimits(WRONG_KEYS_PER_MINUTE)
        self.viewers = 0  # pages that are open and told of changes
        self._overview: tuple[float, Overview] | None = None
        self._reading = asyncio.Lock()

    async def overview(self) -> Overview:
        """Return the counts. Many readers cost no more than one."""
        async with self._reading:
            if self._overview is None or self._overview[0] < time.monotonic():
                found = await self.services.run(self.services.store.overview)
                self._overview = time.monotonic() + OVERVIEW_S, found
            return self._overview[1]


class SignInNeeded(Exception):
    """The request has no session."""


def pages_of(request: Request) -> Pages:
    """Return what the pages share."""
    pages: Pages = request.app.state.pages
    return pages


PagesDep = Annotated[Pages, Depends(pages_of)]


async def signed_in(request: Request, pages: PagesDep) -> Session:
    """Admit the operator's browser."""
    session = pages.sessions.read(request.cookies.get(COOKIE))
    if session is None:
        raise SignInNeeded
    request.state.form_token = pages.sessions.form_token(session)
    return session


SessionDep = Annotated[Session, Depends(signed_in)]


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that a page of this site has sent.

    Raises:
        Rejected: 403, another site has sent it; 422, it cannot be read.
    """
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise Rejected(403, "form_refused", "The form was sent by another site.")
    try:
        body = (await request.body()).decode()
        return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise Rejected(422, "invalid_request", "The form cannot be read.") from None


FormDep = Annotated[dict[str, str], Depends(read_form)]


async def signed_form(session: SessionDep, pages: PagesDep, form: FormDep) -> dict[str, str]:
    """Return the fields of a form that belongs to this session.

    Raises:
        Rejected: 403, as `read_form`, or it is of another session.
    """
    if not pages.sessions.is_form_token(session, form.get("token", "")):
        raise Rejected(403, "form_refused", "The form belongs to another session.")
    return form


SignedFormDep = Annotated[dict[str, str], Depends(signed_form)]


def redirect(request: Request, path: str, **query: str | None) -> RedirectResponse:
    """Return an answer that leads to another page of this site."""
    given = {name: value for name, value in query.items() if value}
    address = request.scope.get("root_path", "") + path
    address += f"?{urlencode(given)}" if given else ""
    return RedirectResponse(address, 303, headers={"Cache-Control": "no-store"})


class PageRoute(APIRoute):
    """A route whose errors are pages, or lead to the sign-in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of the route."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except SignInNeeded:
                return _to_sign_in(request)
            except Rejected as rejected:
                return _error_page(request, rejected)
            except StoreError as error:
                return _error_page(request, of_store(error))
            except RequestValidationError:
                text = "The address of this page has a part that cannot be used."
                return _error_page(request, Rejected(422, "invalid_request", text))

        return handled


def _to_sign_in(request: Request) -> Response:
    if request.method != "GET":
        return redirect(request, "/sign-in")
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        # A link in a mail or a chat. The cookie, if there is one, comes with the next request.
        return pages_of(request).renderer.page(request, "again.html")
    query = f"?{request.url.query}" if request.url.query else ""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return redirect(request, "/sign-in", next=path + query if path + query != "/" else None)


def _error_page(request: Request, rejected: Rejected) -> Response:
    session = pages_of(request).sessions.read(request.cookies.get(COOKIE))
    page = pages_of(request).renderer.page(
        request,
        "error.html",
        status=rejected.status,
        message=rejected.message,
        hint=HINTS[rejected.code],
        is_signed_in=session is not None,
    )
    page.headers.update(rejected.headers)
    return page
