"""The part of an address that may be shown: never a credential, never a signed query string."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

MAX_SHOWN_CHARS = 300
HIDDEN = "[hidden]"

_SAFE_IN_SHOWN_URL = "/:@!$&'()*+,;=-._~%[]"


def shown_url(url: str) -> str:
    """Return scheme, host and last path element of `url`, the parts that may be shown to anybody.

    Some services put a secret into the path instead of the query, so the middle of it is left out.
    Works on any text, however malformed, and never raises; control characters and non-ASCII
    characters come out percent-encoded, long names cut.
    """
    text = _without_folders(bare_url(url))
    # JSON can carry half a surrogate pair, which UTF-8 cannot.
    shown = quote(text, safe=_SAFE_IN_SHOWN_URL, errors="replace")
    return shown if len(shown) <= MAX_SHOWN_CHARS else shown[:MAX_SHOWN_CHARS] + "..."


def with_urls(params: Any, change: Callable[[str], str]) -> Any:
    """Return the params of a job with every address among them changed: each `url` of an object,
    such as that of a segment's own audio.
    """
    if isinstance(params, Mapping):
        changed = {name: with_urls(value, change) for name, value in params.items()}
        if isinstance(url := params.get("url"), str):
            changed["url"] = change(url)
        return changed
    if isinstance(params, list | tuple):
        return [with_urls(value, change) for value in params]
    return params


def _without_folders(url: str) -> str:
    scheme, colon, rest = url.partition("://")
    if not colon:
        scheme, rest = "", url
    host, _, path = rest.partition("/")
    folders, _, name = path.rpartition("/")
    return f"{scheme}{colon}{host}/.../{name}" if folders else url


def bare_url(url: str) -> str:
    """Cut userinfo, query and fragment off."""
    scheme, colon, rest = url.partition("://")
    if not colon:
        scheme, rest = "", url
    authority, slash, path = rest.partition("/")
    bare = re.split(r"[?#]", authority, maxsplit=1)[0]
    if bare != authority:
        # Either a password holds a question mark or a query follows the host.
        host, path = (HIDDEN, "") if "@" in authority else (bare, "")
    else:
        host = authority.rpartition("@")[2]
        path = slash + re.split(r"[?#]", path, maxsplit=1)[0]
    return f"{scheme}{colon}{host}{path}"
