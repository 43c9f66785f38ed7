"""Templates, assets and the headers that every page has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.pages import words
from orchestrator.service.settings import API_VERSION

HERE = Path(__file__).resolve().parent
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Nothing but our own files, and nothing inline. A job's page adds where its video comes from.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that pages load. Its address changes with its content."""

    content: bytes
    media_type: str
    version: str


def _read_assets() -> dict[str, Asset]:
    found = {}
    for file in sorted((HERE / "assets").iterdir()):
        content = file.read_bytes()
        version = hashlib.sha256(content).hexdigest()[:12]
        found[file.name] = Asset(content, MEDIA_TYPES[file.suffix], version)
    return found


class Renderer:
    """Makes pages of templates. Everything that is put into one is escaped."""

    def __init__(self) -> None:
        self.assets = _read_assets()
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        functions = (
            words.ago,
            words.clock,
            words.dollars,
            words.event_name,
            words.iso,
            words.origin_of,
            words.pretty,
            words.span,
            words.unsigned,
        )
        for function in functions:
            self._environment.filters[function.__name__] = function

    def page(
        self,
        request: Request,
        template: str,
        *,
        status: int = 200,
        media_origin: str | None = None,
        **values: Any,
    ) -> HTMLResponse:
        """Return a page. `media_origin`: where its video is loaded from."""
        root = request.scope.get("root_path", "")

        def url(path: str, **query: str | None) -> str:
            given = {name: value for name, value in query.items() if value}
            return f"{root}{path}" + (f"?{urlencode(given)}" if given else "")

        def asset(name: str) -> str:
            return url(f"/assets/{name}", v=self.assets[name].version)

        shown = {
            "url": url,
            "asset": asset,
            "version": API_VERSION,
            "said": words.SAID.get(request.query_params.get("said", "")),
            "form_token": getattr(request.state, "form_token", None),
        }
        html = self._environment.get_template(template).render(shown | values)
        media = "" if media_origin is None else f"; media-src {media_origin}"
        policy = {"Content-Security-Policy": POLICY + media}
        return HTMLResponse(html, status, headers={**HEADERS, **policy})
