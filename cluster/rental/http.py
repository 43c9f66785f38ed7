"""One call to a vendor: the key, deadlines, a size limit, repetitions, and errors as types.

All clients share this, so what a status means and what is repeated is decided here once:

- A call that is safe to repeat is tried up to five times after 5xx, 408, 429 and lost connections.
- A create is repeated only if it was surely not carried out: no connection, or 429. Any other
  missing answer is `RentUnclear`.
- A pause that the vendor asks for with `Retry-After` is kept, up to a minute; a longer one is left
  to the caller. A quota that lasts for a day is not waited for.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
import stamina
from pydantic import JsonValue, TypeAdapter, ValidationError

from cluster.rental.errors import (
    CallRefused,
    NoCapacity,
    OddAnswer,
    QuotaUsedUp,
    RateLimited,
    RentalError,
    RentUnclear,
    VendorDown,
    WrongKey,
)
from cluster.rental.values import Vendor

MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_TEXT_CHARS = 300
ATTEMPTS = 5
TOTAL_S = 150.0
LONGEST_PAUSE_S = 60.0
UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)

# No vendor documents how it says that nothing is free; these words were seen in vendors' messages.
_NO_CAPACITY = re.compile(
    r"no (longer any )?(instances?|capacity|machines?|gpus?|resources)( currently)?( are)? ?"
    r"(available|free|left)|not enough (capacity|resources)|insufficient (capacity|resources)|"
    r"out of (stock|capacity)|no_such_ask|no longer available|is not available|unavailable node",
    re.IGNORECASE,
)
_FOR_HOURS = re.compile(r"quota|daily|per day", re.IGNORECASE)
_TEXTS = ("detail", "msg", "message", "error", "title")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of any status. `body` is None if it is not JSON."""

    status: int
    text: str
    body: JsonValue
    headers: httpx.Headers

    @property
    def fields(self) -> Mapping[str, JsonValue]:
        """Return the fields of the body; none if it is not an object."""
        return self.body if isinstance(self.body, dict) else {}

    @property
    def reason(self) -> str:
        """Return the vendor's own words, in one line."""
        words = [str(self.fields[key]) for key in _TEXTS if self.fields.get(key)]
        return " ".join(" ".join(words or [self.text]).split())[:MAX_TEXT_CHARS]


Explain = Callable[[Answer], RentalError | None]


class VendorHttp:
    """Calls one vendor. `explain` turns answers that mean something special there into errors.

    Threads may share it.
    """

    def __init__(
        self,
        vendor: Vendor,
        base_url: str,
        headers: Mapping[str, str],
        *,
        timeout_s: float = 30.0,
        explain: Explain = lambda _answer: None,
    ) -> None:
        self._vendor = vendor
        self._explain = explain
        self._secrets = [value.removeprefix("Bearer ") for value in headers.values()]
        self._base_url = base_url.rstrip("/")
        self._headers = dict(headers)
        self._client = httpx.Client(timeout=timeout_s, follow_redirects=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._vendor})"

    def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        missing_ok: bool = False,
    ) -> JsonValue:
        """Make a call that is safe to repeat, and return its JSON; None for an empty answer.

        With `missing_ok` the answer 404 gives None too.

        Raises:
            RentalError: errors.py says which.
        """
        request = self._request(method, path, body, params)
        for attempt in stamina.retry_context(
            on=_repeat, attempts=ATTEMPTS, timeout=TOTAL_S, wait_initial=0.5, wait_max=20.0
        ):
            with attempt:
                answer = self._send(request, is_create=False)
                if missing_ok and answer.status == 404:
                    return None
                return self._good(answer, is_create=False)
        raise AssertionError("the last attempt returns or raises")

    def create(self, method: str, path: str, body: object) -> JsonValue:
        """Make a call that must not be made twice.

        Raises:
            NoCapacity: nothing was made.
            RentUnclear: something may have been made.
            RentalError: nothing was made.
        """
        request = self._request(method, path, body, None)
        for attempt in stamina.retry_context(
            on=_repeat, attempts=ATTEMPTS, timeout=TOTAL_S, wait_initial=0.5, wait_max=20.0
        ):
            with attempt:
                return self._good(self._send(request, is_create=True), is_create=True)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def lines(self, path: str, params: Mapping[str, str], silence_s: float) -> Iterator[Any]:
        """Stream the lines of an answer without end; `httpx.ReadTimeout` ends it."""
        request = self._request("GET", path, None, params)
        request.extensions["timeout"] = httpx.Timeout(30.0, read=silence_s).as_dict()
        try:
            answer = self._client.send(request, stream=True)
        except httpx.TransportError as exc:
            raise self._no_answer(exc, is_create=False) from exc
        with closing(answer):
            if answer.status_code != 200:
                self._good(_read(answer), is_create=False)
            yield answer.iter_lines()

    def fetch_elsewhere(self, url: str) -> str | None:
        """Return the text at an address that a vendor named, without the key; None if it is not
        there.
        """
        try:
            with self._client.stream("GET", url) as answer:
                return _read(answer).text if answer.status_code == 200 else None
        except httpx.TransportError as exc:
            raise self._no_answer(exc, is_create=False) from exc

    def read_as(self, kind: TypeAdapter[T], value: object) -> T:
        """Return an answer as a type.

        Raises:
            OddAnswer: it is not what the vendor documents.
        """
        try:
            return kind.validate_python(value)
        except ValidationError as exc:
            first = exc.errors(include_input=False, include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise OddAnswer(
                f"The answer of {self._vendor} is odd at {place or 'its top'}: {first['msg']}."
            ) from exc

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request(
        self, method: str, path: str, body: object, params: Mapping[str, str] | None
    ) -> httpx.Request:
        # An empty body has its length too, which Salad's /stop needs.
        content = b"" if body is None else json.dumps(body).encode()
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
        if method in ("POST", "PUT") and body is None:
            headers["Content-Length"] = "0"
        return self._client.build_request(
            method, f"{self._base_url}{path}", content=content, params=params, headers=headers
        )

    def _send(self, request: httpx.Request, *, is_create: bool) -> Answer:
        try:
            answer = self._client.send(request, stream=True)
            with closing(answer):
                return _read(answer)
        except httpx.TransportError as exc:
            raise self._no_answer(exc, is_create=is_create) from exc

    def _no_answer(self, exc: httpx.TransportError, *, is_create: bool) -> VendorDown:
        text = f"{self._vendor} did not answer ({type(exc).__name__})."
        if is_create and not isinstance(exc, UNREACHED):
            return RentUnclear(f"{text} A machine may have been made.")
        return VendorDown(text)

    def _good(self, answer: Answer, *, is_create: bool) -> JsonValue:
        """Return the JSON of a good answer, or raise what a bad one means."""
        error = self._explain(answer)
        if error is None and 200 <= answer.status < 300:
            if answer.text and answer.body is None:
                raise OddAnswer(f"{self._vendor} answered {answer.status} without JSON.")
            return answer.body
        raise error or self._meaning(answer, is_create=is_create)

    def _meaning(self, answer: Answer, *, is_create: bool) -> RentalError:
        status, reason = answer.status, answer.reason
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        said = f"{self._vendor} answered {status}: {reason or 'no reason'}"
        if status == 429:
            pause_s = _retry_after_s(answer.headers.get("Retry-After"))
            is_short = pause_s is not None and pause_s <= LONGEST_PAUSE_S
            is_for_hours = not is_short and _FOR_HOURS.search(answer.text)
            return (QuotaUsedUp if is_for_hours else RateLimited)(said, pause_s)
        if status == 401:
            return WrongKey(said)
        if is_create and _NO_CAPACITY.search(reason):
            return NoCapacity(said)
        if status == 403:
            return WrongKey(said)
        if status >= 500 or status == 408:
            return RentUnclear(said) if is_create else VendorDown(said)
        return CallRefused(said)


def _read(answer: httpx.Response) -> Answer:
    parts, size = [], 0
    for part in answer.iter_bytes():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise OddAnswer(f"An answer is larger than {MAX_ANSWER_BYTES} bytes.")
        parts.append(part)
    text = b"".join(parts).decode(errors="replace")
    try:
        body = json.loads(text) if text else None
    except ValueError:
        body = None
    return Answer(answer.status_code, text, body, answer.headers)


def _repeat(error: Exception) -> bool | float:
    """Return whether to try again, and after how many seconds if the vendor said so."""
    if isinstance(error, QuotaUsedUp | RentUnclear):
        return False
    if isinstance(error, RateLimited) and error.retry_after_s is not None:
        return error.retry_after_s if error.retry_after_s <= LONGEST_PAUSE_S else False
    return isinstance(error, RateLimited | VendorDown)


def _retry_after_s(text: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, which may be a date."""
    if text is None:
        return None
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(until.timestamp() - time.time(), 0.0)


def from_millis(instant: float) -> datetime:
    """Return an instant that a vendor gives in milliseconds since 1970."""
    return datetime.fromtimestamp(instant / 1000, UTC)
