"""What may be shown of a URL or a log line: never a credential, never a signed query string."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from orchestrator.net.shown import HIDDEN, bare_url, shown_url

__all__ = ["RedactingFilter", "is_signed", "redact", "shown_url"]


# The patterns below run over text that strangers wrote. Each consumes what it matches, so that the
# time stays proportional to the length.
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{0,31}://[^\s\"'<>]*+")
# Query strings also stand alone in log lines (`"GET /path?X-Amz-Signature=... HTTP/1.1"`).
_ASSIGNMENT = re.compile(r"(?<![A-Za-z0-9_-])(?P<name>[A-Za-z0-9_-]++)=(?P<value>[^&\s\"'<>]++)")
_SECRET_NAME = re.compile(
    r"(?i)signature|credential|token|passw|secret|api[_-]?key|access[_-]?key|x-amz-"
)
# `sig` and `se` are Azure's, `hdnts` is Akamai's; `Expires` is CloudFront's and older S3's.
_SIGNED_NAME = re.compile(r"(?i)signature|credential|token|authorization|expir|hdnts|^(sig|se)$")
_AUTHORISATION = re.compile(
    r"(?i)(?P<name>authorization[\"']?\s*[:=,]\s*(?:b(?=[\"']))?[\"']?)(?:(?:basic|bearer)\s+)?[^\s\"',)}\]]+"
)


def is_signed(url: str) -> bool:
    """Return whether the query of `url` looks like a signature, a token or a time of expiry."""
    query = url.partition("?")[2].partition("#")[0]
    return any(_SIGNED_NAME.search(part.partition("=")[0]) for part in query.split("&"))


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without known `secrets`, URL credentials, query strings and auth headers."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _URL.sub(lambda found: bare_url(found[0]), text)
    text = _ASSIGNMENT.sub(_hide_secret_value, text)
    return _AUTHORISATION.sub(rf"\g<name>{HIDDEN}", text)


def _hide_secret_value(found: re.Match[str]) -> str:
    return f"{found['name']}={HIDDEN}" if _SECRET_NAME.search(found["name"]) else found[0]


class RedactingFilter(logging.Filter):
    """Rewrite every log record so that no secret, credential or query string gets out.

    Put it on each *handler* (a filter on a logger misses what child loggers pass up). Records of
    other libraries are covered too: message and arguments are joined first, and a traceback is
    rendered here, because its text repeats exception messages.
    """

    def __init__(self, secrets: Iterable[str | None] = ()) -> None:
        super().__init__()
        # Longest first: a secret that contains another must not leave its tail behind. Very short
        # strings would blank out ordinary words and cannot be secrets.
        known = {secret for secret in secrets if secret and len(secret) >= 6}
        self._secrets = sorted(known, key=len, reverse=True)

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite `record` in place; always lets it pass."""
        record.msg = redact(_message_of(record), self._secrets)
        record.args = None
        if record.exc_info:
            record.exc_text = redact(_traceback_of(record), self._secrets)
            # Formatters print `exc_text` if it is set. Without `exc_info` they render no new trace.
            record.exc_info = None
        elif record.exc_text:
            record.exc_text = redact(record.exc_text, self._secrets)
        return True


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a wrong format string must not cost the line
        return f"{record.msg} {record.args}"


def _traceback_of(record: logging.LogRecord) -> str:
    assert record.exc_info is not None
    return logging.Formatter().formatException(record.exc_info)
