"""`/docs` and `/redoc`, which show the document of the API, with files from this machine alone.

FastAPI's own pages load Swagger UI and Redoc from a network of servers, so that they stay blank
where there is no internet, and start them by inline scripts, which a strict policy forbids. The
files come from the package fastapi-offline; the pages and the scripts that start them are ours. All
of them are requested like any other route, with the key.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, Response

ASSETS = "/docs/assets/"
OURS = Path(__file__).parent / "assets"
_PACKAGE = find_spec("fastapi_offline")  # it is found, and not imported
assert _PACKAGE is not None and _PACKAGE.origin is not None
THEIRS = Path(_PACKAGE.origin).parent / "static"
FILES = {
    **{name: OURS / name for name in ("docs.js", "redoc.js")},
    **{
        name: THEIRS / name
        for name in ("favicon.png", "redoc.standalone.js", "swagger-ui-bundle.js", "swagger-ui.css")
    },
}
# Both write styles into the page; Redoc searches in a worker that it makes of a blob.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
PAGE_HEADERS = {**HEADERS, "Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
FILE_HEADERS = {**HEADERS, "Cache-Control": "private, max-age=3600"}

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def swagger() -> Response:
    """Return the page with all routes, which can be tried there."""
    return FileResponse(OURS / "docs.html", headers=PAGE_HEADERS)


@router.get("/redoc")
async def redoc() -> Response:
    """Return the page with all routes, to be read."""
    return FileResponse(OURS / "redoc.html", headers=PAGE_HEADERS)


@router.get(ASSETS + "{name}")
async def asset(name: str) -> Response:
    """Return a file that the pages need."""
    if name not in FILES:
        raise HTTPException(404)
    return FileResponse(FILES[name], headers=FILE_HEADERS)
