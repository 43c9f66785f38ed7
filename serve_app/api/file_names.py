"""The names that downloaded files get, in `Content-Disposition` (RFC 6266)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

MAX_CHARS = 120
# What some file system does not take in a name.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*]+')


def file_name(job_id: str, metadata: Mapping[str, Any] | None, suffix: str) -> str:
    """Return a name for a file of a job: `name` of its metadata, else its id, made safe."""
    wanted = (metadata or {}).get("name")
    for text in (wanted if isinstance(wanted, str) else "", job_id):
        stem = _UNSAFE.sub("-", text.removesuffix(suffix))[:MAX_CHARS].strip(" .-")
        # Half of a surrogate pair cannot be sent.
        stem = stem.encode("utf-8", "ignore").decode()
        if stem:
            return stem + suffix
    return "video" + suffix


def content_disposition(name: str, kind: Literal["inline", "attachment"]) -> str:
    """Return the header: the name in ASCII for old programs, and whole if it is not ASCII."""
    plain = re.sub(r"[^ -~]|[\"\\%]", "_", name)
    whole = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'{kind}; filename="{plain}"{whole}'
