"""One request until it is answered for good: what is tried again, when, and for how long."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from lipsync_client.effects import Answer, Flow, Pause, Request, Send
from lipsync_client.errors import ApiError, BadAnswer, LipsyncError, NotSupported, Unreachable

PASSING = frozenset({408, 425, 429, 502, 503, 504})
# What a route that does not exist is answered, by this server and by others.
NO_ROUTE = frozenset({404, 405, 501})
NO_ROUTE_CODES = frozenset({"not_found", "method_not_allowed", "bad_answer"})


@dataclass(frozen=True, slots=True)
class Retries:
    """How long and how often a request is tried again.

    `for_s`: from the first failure on. `following_s`: the same for a job that is followed, because
    jobs outlive restarts of their server. A pause doubles from `first_pause_s` to
    `longest_pause_s`, is shortened by chance to as little as a half, and is never shorter than
    Retry-After.
    """

    for_s: float = 60.0
    following_s: float = 600.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0

    def pause_s(self, failures: int, error: LipsyncError) -> float:
        """Return the pause after so many failures, the last of which was `error`."""
        doubled = self.first_pause_s * 2.0 ** min(failures - 1, 16)
        own = min(self.longest_pause_s, doubled) * random.uniform(0.5, 1.0)
        wanted = getattr(error, "retry_after_s", None)
        return max(own, wanted or 0.0)


class Trying:
    """Counts failures in a row, and says when to give up."""

    def __init__(self, retries: Retries, deadline: float | None = None) -> None:
        """`deadline`: of `time.monotonic`; no pause is longer than until then."""
        self._retries = retries
        self._deadline = deadline
        self._failures = 0
        self._since = 0.0
        self._furthest = 0

    def succeeded(self) -> None:
        """Forget earlier failures, because there was progress."""
        self._failures = 0

    def reached(self, place: int) -> None:
        """Forget earlier failures if a transfer is further than it has ever been."""
        if place > self._furthest:
            self._furthest = place
            self.succeeded()

    def after(self, error: LipsyncError) -> Flow[None]:
        """Wait before another try.

        Raises:
            LipsyncError: `error`, because there is no time for another.
        """
        now = time.monotonic()
        if self._failures == 0:
            self._since = now
        self._failures += 1
        pause_s = self._retries.pause_s(self._failures, error)
        if now + pause_s >= self._since + self._retries.for_s:
            raise error
        if self._deadline is not None:
            pause_s = min(pause_s, max(0.0, self._deadline - now))
        yield Pause(pause_s)


def exchange(request: Request, retries: Retries) -> Flow[Answer]:
    """Return the successful answer to a request.

    Raises:
        ApiError, BadAnswer: the request was refused for good, or for too long.
        Unreachable: there was no answer for too long, or the request may not be sent twice.
    """
    trying = Trying(retries)
    while True:
        try:
            answer: Answer = yield Send(request)
        except Unreachable as fault:
            if fault.was_sent and not request.is_repeatable:
                raise
            yield from trying.after(fault)
            continue
        if answer.is_success:
            return answer
        error = error_of(answer)
        if not may_pass(error):
            raise error
        yield from trying.after(error)


def may_pass(error: LipsyncError) -> bool:
    """Return whether a later try may be answered otherwise."""
    return error.retryable or getattr(error, "status", None) in PASSING


def error_of(answer: Answer) -> ApiError | BadAnswer:
    """Return what an answer that is no success means."""
    wait_s = _retry_after_s(answer.headers.get("retry-after"))
    try:
        body = answer.json()
    except BadAnswer:
        body = None
    if not isinstance(body, Mapping):
        if answer.status in PASSING:  # of a proxy that does not reach the server at the moment
            text = f"The server is not available now (status {answer.status})."
            return ApiError(
                text, status=answer.status, code="unavailable", retryable=True, retry_after_s=wait_s
            )
        text = f"The answer with status {answer.status} is not one of this API."
        return BadAnswer(text, status=answer.status)
    message = body.get("error_message") or body.get("detail") or f"Status {answer.status}."
    return ApiError(
        str(message),
        status=answer.status,
        code=str(body.get("code") or "unknown"),
        hint=body.get("hint"),
        retryable=bool(body.get("retryable")),
        retry_after_s=wait_s,
        facts=body,
    )


def supported(flow: Flow[Any], what: str, hint: str) -> Flow[Any]:
    """Run a flow whose first request is for a route that a server may lack.

    Raises:
        NotSupported: it does. `what` is named, and `hint` says what to do instead.
    """
    try:
        return (yield from flow)
    except (ApiError, BadAnswer) as error:
        if error.status in NO_ROUTE and error.code in NO_ROUTE_CODES:
            raise NotSupported(what, status=error.status, hint=hint) from error
        raise


def _retry_after_s(text: str | None) -> float | None:
    """Return what Retry-After says, as seconds or as a date."""
    if text is None:
        return None
    if text.strip().isascii() and text.strip().isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
