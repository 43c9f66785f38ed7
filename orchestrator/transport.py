"""Sends one request to an orchestrator. The result is an answer or an error type.

Every call has a total deadline and every answer a size limit, so that an orchestrator that sends
slowly or without end costs one call. After any transport fault the connection pool is replaced,
because a pool may fail every later request after a TLS fault.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass

import httpx
from pydantic import JsonValue, TypeAdapter, ValidationError

from orchestrator.errors import CallRejected, MalformedAnswer, ServiceUnavailable

MAX_ANSWER_BYTES = 1024 * 1024
MAX_DETAIL_CHARS = 300
TRY_AGAIN_STATUSES = frozenset({408, 425, 429})

_JSON = TypeAdapter(dict[str, JsonValue])
_QUERY = re.compile(r"\?[^\s\"'<>]*")


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer."""

    status: int
    body: bytes


@dataclass(slots=True)
class _ConnectionPool:
    """An `httpx` client and the number of its requests. A replaced client is closed after the last
    of them.
    """

    client: httpx.AsyncClient
    in_flight: int = 0
    retired: bool = False

    async def close_if_unused(self) -> None:
        if self.retired and self.in_flight == 0:
            await self.client.aclose()


class OrchestratorHttp:
    """Posts to an orchestrator, with the key, a deadline, and errors as types.

    `tls` has the trust anchors of a private authority. None uses the public ones.
    """

    def __init__(self, base_url: str, api_key: str, *, tls: ssl.SSLContext | None = None) -> None:
        parsed = httpx.URL(checked_base_url(base_url))
        # Not part of the address, because httpx logs the address of each request.
        self._login = (parsed.username, parsed.password) if parsed.userinfo else None
        self._base_url = parsed.copy_with(username=None, password=None)
        if not api_key or not api_key.isascii() or not api_key.isprintable():
            # The error of httpx would quote the invalid header value.
            raise ValueError("INTERNAL_API_KEY must be one or more visible ASCII characters")
        self._api_key = api_key
        self._tls = tls
        self._pool: _ConnectionPool | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_url.host!r})"

    async def post(self, path: str, body: str, *, timeout_s: float) -> Answer:
        """Return a 2xx answer.

        Raises:
            ServiceUnavailable: no answer within `timeout_s`, a transport fault, or a status of a
                passing fault. Call again later.
            CallRejected: any other status. A second call cannot help.
        """
        status, answer = await self._exchange(path, body, timeout_s)
        if 200 <= status < 300:
            return Answer(status, answer)
        message = f"POST {path} was answered {status}{self._detail(answer)}"
        if status >= 500 or status in TRY_AGAIN_STATUSES:
            raise ServiceUnavailable(message, status_code=status)
        raise CallRejected(message, status_code=status)

    async def aclose(self) -> None:
        """Close the pool. A later request opens a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.retired = True
            await pool.close_if_unused()

    async def _exchange(self, path: str, body: str, timeout_s: float) -> tuple[int, bytes]:
        try:
            pool = self._pool = self._pool or _ConnectionPool(self._new_client())
        except OSError as exc:  # no descriptor left for the certificates' file
            raise ServiceUnavailable(f"POST {path} could not be sent ({self._fault(exc)})") from exc
        pool.in_flight += 1
        try:
            async with (
                asyncio.timeout(timeout_s),
                pool.client.stream("POST", path, content=body.encode()) as response,
            ):
                return response.status_code, await _read_limited(response, path)
        except (httpx.HTTPError, httpx.StreamError, OSError) as exc:
            # TimeoutError is an OSError. TLS faults arrive as httpx's or as bare ssl.SSLError.
            self._retire(pool)
            raise ServiceUnavailable(f"POST {path} got no answer ({self._fault(exc)})") from exc
        finally:
            pool.in_flight -= 1
            await pool.close_if_unused()

    def _retire(self, pool: _ConnectionPool) -> None:
        pool.retired = True
        if self._pool is pool:
            self._pool = None

    def _new_client(self) -> httpx.AsyncClient:
        # It is kept when the pool is replaced. It holds no connection, and reading the certificates
        # again would block the loop for tens of milliseconds.
        self._tls = self._tls or httpx.create_ssl_context()
        return httpx.AsyncClient(
            base_url=self._base_url,
            auth=self._login,
            headers={
                "X-Internal-API-Key": self._api_key,
                "Content-Type": "application/json",
                "Accept": "application/json",
                # No compression, so that the size limit applies to the memory that an answer takes.
                "Accept-Encoding": "identity",
            },
            timeout=None,  # `asyncio.timeout` bounds the whole call
            follow_redirects=False,  # the key must not travel to another host
            verify=self._tls,
        )

    def _fault(self, exc: Exception) -> str:
        text = self.without_secrets(str(exc))
        return f"{type(exc).__name__}: {text}" if text else type(exc).__name__

    def _detail(self, answer: bytes) -> str:
        """Return the explanation in an error answer.

        Of FastAPI's errors only `loc` and `msg` are used, as `input` may repeat signed URLs.
        """
        try:
            detail = _JSON.validate_json(answer).get("detail")
        except ValidationError:
            return ""
        if isinstance(detail, list):
            known = [entry for entry in detail if isinstance(entry, dict)]
            detail = "; ".join(f"{entry.get('loc')}: {entry.get('msg')}" for entry in known)
        if not isinstance(detail, str) or not detail:
            return ""
        return f": {self.without_secrets(detail)}"

    def without_secrets(self, text: str) -> str:
        """Return a text of the orchestrator for logs: shortened, without key and query strings."""
        return _QUERY.sub("?…", text.replace(self._api_key, "…"))[:MAX_DETAIL_CHARS]


def checked_base_url(url: str) -> str:
    """Return the address without a trailing slash.

    Raises:
        ValueError: it is not an http(s) address. The message does not repeat it, as it may contain
            a password.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ValueError("the orchestrator's base URL cannot be read") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("the orchestrator's base URL must start with http:// or https://")
    if parsed.query or parsed.fragment:
        raise ValueError("the orchestrator's base URL must have no query and no fragment")
    return url.rstrip("/")


async def _read_limited(response: httpx.Response, path: str) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise MalformedAnswer(
                f"POST {path} was answered with more than {MAX_ANSWER_BYTES} bytes",
                status_code=response.status_code,
            )
        chunks.append(chunk)
    return b"".join(chunks)
