"""Clients of the ingress that disconnect, as Serve's proxy passes that on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from ray.exceptions import TaskCancelledError
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from orchestrator.job_api.event_stream import EventStream
from serve_app.api.departed_clients import DepartedClients

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": []}


async def cancelled() -> Message:
    """Do what `receive` of a cancelled request does if Ray ends its own call first."""
    raise TaskCancelledError


async def test_a_stream_whose_request_was_cancelled_ends_without_an_error() -> None:
    sent: list[Message] = []
    is_closed = asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: first\n\n"
            await asyncio.Event().wait()
        finally:
            is_closed.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await EventStream(events())(scope, receive, send)

    async def send(message: Message) -> None:
        sent.append(message)

    async def left_after_the_first() -> Message:
        while len(sent) < 2:
            await asyncio.sleep(0)
        return await cancelled()

    async with asyncio.timeout(30):
        await DepartedClients(app)(SCOPE, left_after_the_first, send)
    assert is_closed.is_set()
    assert [message.get("body") for message in sent] == [None, b"data: first\n\n"]


async def test_a_client_that_has_left_stays_away() -> None:
    """Ray's own `receive` would wait for ever after its error."""
    seen: list[bool] = []
    times = 0

    async def once() -> Message:
        nonlocal times
        times += 1
        return await (cancelled() if times == 1 else asyncio.Event().wait())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            seen.append((await receive())["type"] == "http.disconnect")
        seen.append(await Request(scope, receive).is_disconnected())

    async def send(message: Message) -> None:
        raise AssertionError(message)

    async with asyncio.timeout(30):
        await DepartedClients(app)(SCOPE, once, send)
    assert seen == [True, True, True]
