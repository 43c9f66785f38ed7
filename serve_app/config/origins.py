"""Origins of web pages, as browsers write them in `Origin`."""

from __future__ import annotations

import re

ANY = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def origin_of(text: str) -> str:
    """Return an origin in the form that browsers send: in lower case, without the default port.

    Raises:
        ValueError: it is neither an origin nor `*`.
    """
    origin = text.strip().lower().removesuffix("/")
    if origin == ANY:
        return ANY
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"{text!r} is no origin: write https://app.example, without a path, or *")
    scheme, _, rest = origin.partition("://")
    return f"{scheme}://{rest.removesuffix(':' + _DEFAULT_PORTS.get(scheme, '-'))}"
