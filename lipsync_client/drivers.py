"""What performs the effects of flows: one driver with threads that block, and one with asyncio.

All that differs between the two clients is here.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx

from lipsync_client.effects import (
    CONNECT_S,
    Answer,
    Do,
    Effect,
    Emit,
    Flow,
    Open,
    Pause,
    Read,
    Request,
    Send,
)
from lipsync_client.errors import LipsyncError, Unreachable

DEFAULT_SERVER = "http://127.0.0.1:8000"
SERVER_VARIABLE, KEY_VARIABLES = "LIPSYNC_SERVER", ("LIPSYNC_API_KEY", "INGRESS_API_KEY")
# The server cannot have acted on a request that ended like this.
NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
)

T = TypeVar("T")
OnEmit = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Server:
    """A server and the key for it. `base`: its address without a slash at the end."""

    base: str
    key: str | None = field(repr=False)

    @classmethod
    def of(cls, server: str | None, api_key: str | None) -> Server:
        """Return the server that is named, or that of the environment.

        Raises:
            ValueError: the address is none of http or https.
        """
        base = (server or os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER).rstrip("/")
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"{base!r} is no address of a server; it begins with http:// or https://"
            )
        found = (os.environ.get(name) for name in KEY_VARIABLES)
        key = api_key or next((key for key in found if key), None)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError("The key must consist of visible ASCII characters.")
        return cls(base, key)

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, so that no proxy of the environment leads to it."""
        host = urlsplit(self.base).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def arguments(self, request: Request) -> dict[str, Any]:
        """Return what httpx builds a request from. The key is for this server alone."""
        url = request.url if "://" in request.url else f"{self.base}{request.url}"
        headers = {"Accept-Encoding": "identity", **request.headers}
        if self.key is not None and _origin(url) == _origin(self.base):
            headers["X-Internal-API-Key"] = self.key
        arguments: dict[str, Any] = {
            "method": request.method,
            "url": url,
            "headers": headers,
            "timeout": httpx.Timeout(request.timeout_s, connect=min(CONNECT_S, request.timeout_s)),
        }
        if request.params:
            arguments["params"] = dict(request.params)
        if request.json is not None:
            arguments["json"] = request.json
        if request.content is not None:
            arguments["content"] = request.content
        return arguments

    def fault(self, exc: httpx.HTTPError | httpx.InvalidURL) -> LipsyncError:
        """Return what an error of the transport means, without addresses that may be signed."""
        if isinstance(exc, httpx.InvalidURL):
            return LipsyncError("The address of the request is not valid.")
        text = f"There is no answer from {self.base} ({type(exc).__name__})."
        return Unreachable(text, was_sent=not isinstance(exc, NEVER_SENT))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


@dataclass(slots=True)
class Result(Generic[T]):
    """What a flow has returned, once it has ended."""

    value: T | None = None


class _Steps(Generic[T]):
    """A flow, step by step: is told what became of an effect, and gives the next one."""

    def __init__(self, flow: Flow[T], result: Result[T]) -> None:
        self._flow = flow
        self._result = result
        self._sent: Any = None
        self._error: Exception | None = None

    def next(self) -> Effect | None:
        """Return the next effect; None at the end of the flow."""
        sent, error = self._sent, self._error
        self._sent = self._error = None
        try:
            return self._flow.send(sent) if error is None else self._flow.throw(error)
        except StopIteration as end:
            self._result.value = end.value
            return None

    def done(self, result: Any) -> None:
        """Take the result of the last effect."""
        self._sent = result

    def failed(self, error: Exception) -> None:
        """Take its error, which the flow may act on."""
        self._error = error

    def close(self) -> None:
        """End the flow, wherever it is."""
        self._flow.close()


def _answer(response: httpx.Response, body: bytes = b"") -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body)


class BlockingDriver:
    """Performs effects in the calling thread. One driver may be used by several threads."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._http = httpx.Client(trust_env=not server.is_here, follow_redirects=False)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def run(self, flow: Flow[T], on_emit: OnEmit | None = None) -> T:
        """Return the result of a flow. `on_emit` is called with each value on the way."""
        result: Result[T] = Result()
        with closing(self.stream(flow, result)) as values:
            for value in values:
                if on_emit is not None:
                    on_emit(value)
        return result.value  # type: ignore[return-value]

    def stream(self, flow: Flow[T], result: Result[T] | None = None) -> Generator[Any, None, None]:
        """Yield what a flow emits."""
        steps, opened = _Steps(flow, result or Result()), _BlockingAnswer(self._http, self.server)
        with closing(steps), closing(opened):
            while (effect := steps.next()) is not None:
                if isinstance(effect, Emit):
                    yield effect.value
                    continue
                try:
                    steps.done(self._perform(effect, opened))
                except Exception as exc:
                    steps.failed(exc)

    def _perform(self, effect: Effect, opened: _BlockingAnswer) -> Any:
        if isinstance(effect, Read):
            return opened.read()
        if isinstance(effect, Do):
            return effect.function()
        opened.close()
        if isinstance(effect, Pause):
            return time.sleep(effect.seconds)
        if isinstance(effect, Send):
            return opened.whole(effect.request)
        assert isinstance(effect, Open)
        return opened.open(effect.request)


class _BlockingAnswer:
    """The open answer of a flow, if there is one."""

    def __init__(self, http: httpx.Client, server: Server) -> None:
        self._http, self._server = http, server
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def whole(self, request: Request) -> Answer:
        try:
            response = self._http.request(**self._server.arguments(request))
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._server.fault(exc) from exc
        return _answer(response, response.content)

    def open(self, request: Request) -> Answer:
        try:
            built = self._http.build_request(**self._server.arguments(request))
            self._response = self._http.send(built, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._server.fault(exc) from exc
        self._pieces = self._response.iter_raw()
        return _answer(self._response)

    def read(self) -> bytes | None:
        try:
            return next(self._pieces, None)
        except httpx.HTTPError as exc:
            raise self._server.fault(exc) from exc

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class AsyncDriver:
    """Performs effects with asyncio. What may block runs in a thread."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._http = httpx.AsyncClient(trust_env=not server.is_here, follow_redirects=False)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def run(self, flow: Flow[T], on_emit: OnEmit | None = None) -> T:
        """Return the result of a flow. `on_emit` is called with each value on the way, and awaited
        if it is a coroutine function.
        """
        result: Result[T] = Result()
        async with aclosing(self.stream(flow, result)) as values:
            async for value in values:
                called = None if on_emit is None else on_emit(value)
                if inspect.isawaitable(called):
                    await called
        return result.value  # type: ignore[return-value]

    async def stream(
        self, flow: Flow[T], result: Result[T] | None = None
    ) -> AsyncGenerator[Any, None]:
        """Yield what a flow emits."""
        steps, opened = _Steps(flow, result or Result()), _AsyncAnswer(self._http, self.server)
        async with aclosing(opened):
            with closing(steps):
                while (effect := steps.next()) is not None:
                    if isinstance(effect, Emit):
                        yield effect.value
                        continue
                    try:
                        steps.done(await self._perform(effect, opened))
                    except Exception as exc:
                        steps.failed(exc)

    async def _perform(self, effect: Effect, opened: _AsyncAnswer) -> Any:
        if isinstance(effect, Read):
            return await opened.read()
        if isinstance(effect, Do):
            return await asyncio.to_thread(effect.function)
        await opened.aclose()
        if isinstance(effect, Pause):
            return await asyncio.sleep(effect.seconds)
        if isinstance(effect, Send):
            return await opened.whole(effect.request)
        assert isinstance(effect, Open)
        return await opened.open(effect.request)


class _AsyncAnswer:
    """The open answer of a flow, if there is one."""

    def __init__(self, http: httpx.AsyncClient, server: Server) -> None:
        self._http, self._server = http, server
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def whole(self, request: Request) -> Answer:
        try:
            response = await self._http.request(**self._server.arguments(request))
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._server.fault(exc) from exc
        return _answer(response, response.content)

    async def open(self, request: Request) -> Answer:
        try:
            built = self._http.build_request(**self._server.arguments(request))
            self._response = await self._http.send(built, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._server.fault(exc) from exc
        self._pieces = self._response.aiter_raw()
        return _answer(self._response)

    async def read(self) -> bytes | None:
        assert self._pieces is not None, "an answer is opened before it is read"
        try:
            return await anext(self._pieces, None)
        except httpx.HTTPError as exc:
            raise self._server.fault(exc) from exc

    async def aclose(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None
