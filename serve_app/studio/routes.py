"""The routes of the page. They need no key: the files hold no secret, and the page sends the key
of its user with each call of the API.
"""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Response

from serve_app.gate.callers import PAGE_PATH, PAGE_PREFIX
from serve_app.studio.assets import read_assets

YEAR_S = 365 * 24 * 3600
# Nothing but our own files, and nothing inline. Results may lie in a bucket, users may give
# addresses of videos and pictures, and what they have chosen or recorded has a `blob:` address.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: https: http:; media-src 'self' blob: https: http:; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
PAGE_HEADERS = {
    **HEADERS,
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}
FILE_HEADERS = {**HEADERS, "Cache-Control": f"public, max-age={YEAR_S}, immutable"}


def studio_router() -> APIRouter:
    """Return the routes of the page, with its files read into memory (about half a megabyte)."""
    assets = read_assets()
    router = APIRouter(include_in_schema=False)

    @router.head(PAGE_PATH)
    @router.get(PAGE_PATH)
    async def page() -> Response:
        return Response(assets.page, media_type="text/html", headers=PAGE_HEADERS)

    @router.head(PAGE_PREFIX + "{version}/{name:path}")
    @router.get(PAGE_PREFIX + "{version}/{name:path}")
    async def file(version: str, name: str) -> Response:
        found = assets.files.get(name) if version == assets.version else None
        if found is None:
            raise HTTPException(404)
        return Response(found.content, media_type=found.media_type, headers=FILE_HEADERS)

    return router
