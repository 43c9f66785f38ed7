"""Small files inside a JSON document, as `data:` URLs (RFC 2397), in place of addresses."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from orchestrator.job_api.bodies import declared_bytes
from serve_app.gate.asgi import header
from serve_app.gate.forms import FormInvalid

FIELDS = ("video_url", "audio_url")
MAX_FILE_BYTES = 8 << 20
# In base64, and with the rest of the document.
MAX_BODY_BYTES = MAX_FILE_BYTES * 4 // 3 + 64 * 1024
MARK = b'"data:'


@dataclass(frozen=True, slots=True)
class InlineDocument:
    """A document without its files, and the bytes of each by the field it was in."""

    document: dict[str, Any]
    files: dict[str, bytes]


def may_be_inline(scope: Scope, max_bytes: int) -> bool:
    """Whether a JSON body is declared that is larger than `max_bytes`, but not for one with files
    in it.
    """
    kind = header(scope["headers"], b"content-type") or b""
    return b"json" in kind.lower() and max_bytes < (declared_bytes(scope) or 0) <= MAX_BODY_BYTES


def take_out(body: bytes) -> InlineDocument | None:
    """Return a document and the files that were in it; None if there are none.

    Raises:
        FormInvalid: a `data:` URL is not in base64, or is too large.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None  # the route says what is wrong with it
    if not isinstance(document, dict):
        return None
    files = {
        name: _decoded(name, document[name])
        for name in FIELDS
        if isinstance(document.get(name), str) and document[name][:5].lower() == "data:"
    }
    return InlineDocument(document, files) if files else None


def _decoded(name: str, url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise FormInvalid(f"{name}: a data: URL has to be in base64 (data:audio/wav;base64,…).")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise FormInvalid(f"{name}: the data: URL is not valid base64.") from None
    if len(content) > MAX_FILE_BYTES:
        limit = MAX_FILE_BYTES >> 20
        raise FormInvalid(f"{name}: a data: URL holds at most {limit} MiB. Upload larger files.")
    return content
