"""Both clients by the same tests, and a server that does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_server import Script, ScriptedServer, scripted_server

from lipsync_client import AsyncLipsyncClient, LipsyncClient, Retries

QUICK = Retries(5.0, 5.0, first_pause_s=0.001, longest_pause_s=0.002)
Call = Callable[..., Any]


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedServer]]:
    """Return a function that starts a server with a script."""
    contexts = []

    def start(script: Script) -> ScriptedServer:
        context = scripted_server(script)
        contexts.append(context)
        return context.__enter__()

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def call_blocking(url: str, name: str, *args: Any, retries: Retries = QUICK, **options: Any) -> Any:
    with LipsyncClient(url, "the-key", retries=retries) as client:
        result = getattr(client, name)(*args, **options)
        return list(result) if hasattr(result, "send") else result


def call_async(url: str, name: str, *args: Any, retries: Retries = QUICK, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncLipsyncClient(url, "the-key", retries=retries) as client:
            result = getattr(client, name)(*args, **options)
            if hasattr(result, "asend"):
                return [value async for value in result]
            return await result

    return asyncio.run(run())


@pytest.fixture
def call() -> Call:
    """Return `call(url, name, *args)`: a method of the client that blocks."""
    return call_blocking


@pytest.fixture(
    params=[call_blocking, pytest.param(call_async, marks=pytest.mark.slow)],
    ids=["blocking", "async"],
)
def either(request: pytest.FixtureRequest) -> Call:
    """The same for both clients. What a method yields becomes a list."""
    return request.param  # type: ignore[no-any-return]
