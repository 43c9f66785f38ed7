"""Outputs sent to an address that takes an HTTP PUT, usually a pre-signed one of object storage."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpcore

from musetalk_pipeline.errors import Detail, Stage, UploadFailed
from musetalk_pipeline.retries import async_retrying
from orchestrator.net.connections import DEFAULT_NETWORK, Network, PinnedClient
from serve_app.net.addresses import AddressPolicy, parse_location
from serve_app.outputs.store import READ_BLOCK_BYTES, Place, StoredOutput, file_digests

logger = logging.getLogger(__name__)

_RETRYABLE_STATUSES = (408, 425, 429)  # and every 5xx


class _UnresolvedError(Exception):
    """The host of the address has no address now."""


class _TryAgainError(Exception):
    """This try failed in a way that the next one may not. Holds what to report if none is left."""

    def __init__(self, error: UploadFailed) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class PutLimits:
    """The limits of storing one video by HTTP PUT."""

    try_s: float = 300.0  # docs/protocol.md §1: upload limit a try
    connect_s: float = 15.0
    stall_s: float = 60.0
    tries: int = 3
    backoff_s: float = 1.0


class PutStore:
    """Sends the video to one address (`OUTPUT_URL`), usually signed, by HTTP PUT. No sidecar.

    `policy` checks an address that comes from a request, as it does for downloads. None trusts the
    address, because it comes from the environment of the operator.
    """

    name = "put"

    def __init__(
        self,
        output_url: str,
        *,
        policy: AddressPolicy | None = None,
        limits: PutLimits | None = None,
        network: Network = DEFAULT_NETWORK,
        headers: Mapping[str, str] = MappingProxyType({"Content-Type": "video/mp4"}),
    ) -> None:
        self._headers = headers
        self._target = parse_location(output_url)
        self._limits = limits = limits or PutLimits()
        self._client = PinnedClient(
            network, policy, connect_s=limits.connect_s, stall_s=limits.stall_s
        )

    def __repr__(self) -> str:
        return f"PutStore({self._target.shown})"

    def check(self) -> None:
        """Do nothing, because a request would use a signed address up."""

    def place(self, job_id: str) -> Place:
        return Place(None, None)

    def has(self, job_id: str) -> bool:
        """Return True, because an address for a PUT cannot be read."""
        return True

    def put(self, job_id: str, video: Path, sidecar: bytes) -> StoredOutput:
        """Send the video, up to `limits.tries` times. A redirect is not followed."""
        # An event loop of its own gives every try a deadline that holds whatever the server does.
        asyncio.run(self._send(video))
        digests = file_digests(video)
        url = self._target.url.partition("?")[0]  # the query is the signature
        return StoredOutput(url, None, None, digests.size_bytes, digests.sha256)

    async def _send(self, video: Path) -> None:
        again = async_retrying(self._limits.tries, self._limits.backoff_s)
        try:
            await again(_TryAgainError, self._try, video)
        except _TryAgainError as fault:
            raise fault.error from None

    async def _try(self, video: Path) -> None:
        try:
            async with asyncio.timeout(self._limits.try_s):
                status = await self._send_once(video)
        except TimeoutError:
            raise self._again(f"it did not finish within {self._limits.try_s:g} s") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError):
            raise self._again("the connection could not be made or was cut off") from None
        except _UnresolvedError:
            raise self._again("the host name could not be resolved") from None
        except OSError as exc:
            raise UploadFailed("Upload failed: the finished video cannot be read.") from exc
        if 200 <= status < 300:
            return
        answer = f"the address answers {status}"
        if status < 500 and status not in _RETRYABLE_STATUSES:
            raise self._failed(answer, status_code=status)
        raise self._again(answer, status_code=status)

    def _again(self, what: str, **details: Detail) -> _TryAgainError:
        fault = _TryAgainError(self._failed(what, **details))
        logger.info("upload attempt failed", extra={"reason": fault.error.message})
        return fault

    def _failed(self, what: str, **details: Detail) -> UploadFailed:
        error = UploadFailed(f"Upload failed: {what}.", stage=Stage.UPLOAD, url=self._target.shown)
        error.details |= details
        return error

    async def _send_once(self, video: Path) -> int:
        """Make one request; return the status of the answer, whose body is not read."""
        try:
            addresses = await self._client.resolve(self._target)
        except OSError as exc:
            raise _UnresolvedError from exc
        with video.open("rb") as reader:
            size_bytes = os.fstat(reader.fileno()).st_size

            async def body() -> AsyncIterator[bytes]:
                while block := reader.read(READ_BLOCK_BYTES):
                    yield block

            headers = {**self._headers, "Content-Length": str(size_bytes)}
            async with self._client.stream(
                "PUT", self._target, addresses, headers=headers, content=body()
            ) as response:
                return response.status
