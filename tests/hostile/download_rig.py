"""What the tests of downloads share: limits, one download from a server that a test scripts."""

from __future__ import annotations

import hashlib
import ipaddress
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from musetalk_pipeline.errors import (
    PipelineError,
    Stage,
)
from orchestrator.net.connections import Network
from serve_app.inputs.download_body import Downloaded, DownloadLimits
from serve_app.inputs.downloads import download
from serve_app.net.addresses import AddressPolicy
from tests.hostile.raw_server import Exchange, RawServer, Script, serve

BODY = bytes(range(256)) * 40
LOOPBACK = AddressPolicy(frozenset({"127.0.0.1"}))
QUICK = DownloadLimits(max_bytes=1 << 20, total_s=30, attempt_s=20, connect_s=5, stall_s=5)
ONCE = replace(QUICK, attempts=1)
NO_CURL = Network(curl=None)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


async def fetch(
    script: Script,
    target: Path,
    limits: DownloadLimits = QUICK,
    network: Network = NO_CURL,
) -> tuple[Downloaded | PipelineError, RawServer]:
    """Download from a server that follows `script`; return the result, or the error, and it."""
    async with serve(script) as server:
        try:
            result: Downloaded | PipelineError = await download(
                server.url(), target, policy=LOOPBACK, limits=limits, network=network
            )
        except PipelineError as error:
            result = error
            assert not target.exists()
        return result, server


def assert_is_body(result: Downloaded | PipelineError, body: bytes = BODY) -> None:
    assert isinstance(result, Downloaded), result
    assert result.path.read_bytes() == body
    assert result.size_bytes == len(body)
    assert result.sha256 == hashlib.sha256(body).hexdigest()


def assert_failed(
    result: Downloaded | PipelineError, kind: type[PipelineError], message: str
) -> None:
    assert type(result) is kind, result
    assert message in result.message
    assert result.stage is Stage.DOWNLOAD
    assert result.details["url"] and "?" not in str(result.details["url"])


async def only_curl_reads_it(e: Exchange) -> None:
    """A header name with a space: seen from CDNs, refused by h11, taken by curl."""
    await e.send(f"HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: {len(BODY)}\r\n\r\n", BODY)


def answering(*answers: str | list[str]) -> tuple[Network, list[str]]:
    """Return a network whose DNS gives these answers in turn, and the list of what it was asked."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [ipaddress.ip_address(a) for a in ([answer] if isinstance(answer, str) else answer)]

    return Network(resolve=resolve, curl=None), asked


async def endless(e: Exchange) -> None:
    while True:
        await e.send(b"x" * 65536)
