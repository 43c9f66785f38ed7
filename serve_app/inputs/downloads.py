"""Downloads from untrusted addresses: hostile URLs, hostile servers, CDNs that violate HTTP.

The steps of a download:
1. `parse_location` parses the URL. The host is resolved, and `AddressPolicy` checks every address.
2. The connection goes to one of these addresses by number, so that the name is not resolved again.
   The Host header, SNI and the certificate check use the name.
3. A redirect returns to step 1, a limited number of times.
4. The body is written to a temporary file next to the target, counted and hashed. The file is
   renamed when it is complete, and removed in every other case.
5. An attempt that is slower on average than the limit allows is given up, even if the time is spent
   on connecting, redirects or headers.

Some servers violate HTTP in ways that curl tolerates. After a protocol fault the same hop is tried
with curl, pinned to the same addresses and without redirects. The same code reads and counts its
output.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import httpcore

from musetalk_pipeline.errors import (
    DownloadFailed,
    SourceUnreachable,
    Stage,
    StageFailed,
)
from musetalk_pipeline.files import part_name
from musetalk_pipeline.retries import async_retrying
from orchestrator.net.connections import DEFAULT_NETWORK, Network, PinnedClient
from serve_app.inputs import curl
from serve_app.inputs.download_body import (
    WRITE_BLOCK_BYTES,
    Body,
    Downloaded,
    DownloadLimits,
    OnBytes,
    TryAgainError,
)
from serve_app.inputs.local_files import open_allowed_file
from serve_app.net.addresses import AddressPolicy, IpAddress, Location, follow, parse_location
from serve_app.telemetry.redact import is_signed, shown_url

logger = logging.getLogger(__name__)

USER_AGENT = "lipsync-serve/1"
_REDIRECTS = (301, 302, 303, 307, 308)
# Statuses of faults that may pass.
_RETRYABLE_STATUSES = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
# Codings that change the bytes. Nothing is ever decompressed, so there are no decompression bombs.
# Such a body is refused, because it was not requested and is not a media file.
_COMPRESSED = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress", "bzip2", "xz")


class _BrokenHttpError(Exception):
    """The server's answer violates HTTP. curl may still be able to read it."""


async def download(
    url: str,
    target: Path,
    *,
    policy: AddressPolicy,
    limits: DownloadLimits,
    allowed_folders: Sequence[Path] = (),
    network: Network = DEFAULT_NETWORK,
    on_bytes: OnBytes | None = None,
) -> Downloaded:
    """Fetch `url` (http, https, or file below one of the `allowed_folders`) to `target`.

    `on_bytes` gets the bytes that have arrived and the size that was declared, None if it was not.

    Memory stays constant. When cancelled, the connection or curl is closed and the partial file
    removed before the cancellation goes on.

    Raises:
        SourceRefused: this worker may not fetch from that address. Send another one.
        DownloadFailed: the source answered with an error, with nothing, or too slowly.
        MediaTooLarge: the file has more than `limits.max_bytes`.
        StageFailed: the disk of this machine is full or cannot be written.
    """
    part = part_name(target)
    try:
        async with asyncio.timeout(limits.total_s):
            if url[:5].lower() == "file:":
                source = await asyncio.to_thread(open_allowed_file, url, allowed_folders)
                with source, Body(part, limits, shown_url(url)) as body:
                    await _copy(source, body)
                    return await body.complete(target)
            fetch = _Fetch(parse_location(url), policy, limits, network, on_bytes)
            return await fetch.run(part, target)
    except TimeoutError as exc:
        raise _timed_out(url, limits.total_s) from exc
    except OSError as exc:
        raise disk_failed(exc) from exc
    finally:
        part.unlink(missing_ok=True)


def _timed_out(url: str, seconds: float) -> DownloadFailed:
    return DownloadFailed(
        f"Download failed: the source did not deliver within {seconds:g} s.", url=shown_url(url)
    )


def disk_failed(exc: OSError) -> StageFailed:
    """Return the error for a file that this machine cannot write."""
    full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "this worker's disk is full" if full else "this worker cannot write to its disk"
    return StageFailed(f"Download failed: {what}.", stage=Stage.DOWNLOAD)


# --- http and https -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """The result of one hop: a complete body, or the address of a redirect."""

    redirect: str | None = None


class _Fetch:
    """One download over http or https, with its attempts, hops, and two ways to make a hop."""

    def __init__(
        self,
        start: Location,
        policy: AddressPolicy,
        limits: DownloadLimits,
        network: Network,
        on_bytes: OnBytes | None,
    ) -> None:
        self._start = start
        self._limits = limits
        self._network = network
        self._client = PinnedClient(
            network, policy, connect_s=limits.connect_s, stall_s=limits.stall_s
        )
        self._on_bytes = on_bytes

    async def run(self, part: Path, target: Path) -> Downloaded:
        """Make up to `limits.attempts` attempts, with growing pauses between them."""
        again = async_retrying(self._limits.attempts, self._limits.backoff_s)
        with Body(part, self._limits, self._start.shown, self._on_bytes) as body:
            try:
                return await again(TryAgainError, self._attempt, body, target)
            except TryAgainError as fault:
                raise fault.error from None

    async def _attempt(self, body: Body, target: Path) -> Downloaded:
        """Make one attempt, within its time."""
        body.restart()
        try:
            async with asyncio.timeout(self._limits.attempt_s):
                async with body.paced():
                    await self._read(body)
                return await body.complete(target)
        except TimeoutError as exc:
            fault = TryAgainError(_timed_out(self._start.url, self._limits.attempt_s))
            self._log(fault)
            raise fault from exc
        except TryAgainError as fault:
            self._log(fault)
            raise

    def _log(self, fault: TryAgainError) -> None:
        extra = {"source": self._start.shown, "reason": fault.error.message}
        logger.info("download attempt failed", extra=extra)

    async def _read(self, body: Body) -> None:
        """Follow the redirects to a body and read it."""
        location = self._start
        for _ in range(self._limits.max_redirects + 1):
            addresses = await self._resolve(location)
            try:
                answer = await self._get(location, addresses, body)
            except _BrokenHttpError as fault:
                body.restart()
                answer = await self._get_with_curl(location, addresses, body, fault)
            if answer.redirect is None:
                return
            location = follow(location, answer.redirect)
        raise DownloadFailed(
            f"Download failed: more than {self._limits.max_redirects} redirects.",
            url=self._start.shown,
        )

    async def _resolve(self, location: Location) -> list[IpAddress]:
        try:
            return await self._client.resolve(location)
        except OSError as exc:
            raise TryAgainError(_unresolved(location)) from exc

    async def _get(self, location: Location, addresses: Sequence[IpAddress], body: Body) -> _Answer:
        """Make one hop and, if it is the last, read the body."""
        headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
        try:
            async with self._client.stream("GET", location, addresses, headers=headers) as response:
                return await self._read_answer(location, response, body)
        except httpcore.ProtocolError as exc:
            raise _BrokenHttpError(str(exc)) from exc
        except (httpcore.TimeoutException, httpcore.NetworkError) as exc:
            raise _connection_failure(location, exc) from exc

    async def _read_answer(
        self, location: Location, response: httpcore.Response, body: Body
    ) -> _Answer:
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1").strip()
            for name, value in response.headers
        }
        redirect = _judge_status(location, response.status, headers.get("location", ""))
        if redirect is not None:
            return _Answer(redirect)
        _refuse_compressed(location, headers.get("content-encoding", ""))
        declared = headers.get("content-length", "")
        if declared.isdecimal():
            body.expect(int(declared[:20]))
        async with contextlib.aclosing(_chunks(response)) as chunks:
            async for chunk in chunks:
                await body.add(chunk)
        return _Answer()

    async def _get_with_curl(
        self,
        location: Location,
        addresses: Sequence[IpAddress],
        body: Body,
        fault: _BrokenHttpError,
    ) -> _Answer:
        """Make the hop with curl, with the same addresses and the same counting of bytes."""
        broken = DownloadFailed(
            "Download failed: the server's answer breaks the HTTP protocol.", url=location.shown
        )
        program = shutil.which(self._network.curl) if self._network.curl else None
        if program is None:
            raise TryAgainError(broken) from fault
        logger.info("trying the download with curl", extra={"source": location.shown})
        config = curl.configuration(
            location,
            addresses,
            user_agent=USER_AGENT,
            certificates=self._network.certificates,
            max_bytes=self._limits.max_bytes,
            connect_s=self._limits.connect_s,
            total_s=self._limits.attempt_s,
        )
        try:
            report = await curl.run(program, config, self._limits.stall_s, body.add)
        except curl.Stalled as exc:
            raise TryAgainError(_stalled(location)) from exc
        if report.exit_code == curl.TOO_LARGE:
            body.expect(self._limits.max_bytes + 1)
        if report.exit_code == curl.TIMEOUT:
            raise TryAgainError(_timed_out(location.url, self._limits.attempt_s))
        if report.exit_code == curl.BAD_CERTIFICATE:
            raise _bad_certificate(location)
        if report.exit_code not in (0, curl.HTTP_ERROR):
            raise TryAgainError(broken)
        redirect = _judge_status(location, report.status, report.redirect)
        if redirect is not None:
            body.restart()  # a redirect may have a body
            return _Answer(redirect)
        return _Answer()


async def _chunks(response: httpcore.Response) -> AsyncGenerator[bytes, None]:
    stream: AsyncIterator[bytes] = response.aiter_stream()
    async for chunk in stream:
        yield chunk


def _judge_status(location: Location, status: int, redirect: str) -> str | None:
    """Return the address of a redirect, None if a body follows.

    Raises:
        DownloadFailed, TryAgainError: any other status.
    """
    if status in (200, 203):
        return None
    if status in _REDIRECTS and redirect:
        return redirect
    if status in (204, 205):
        raise DownloadFailed(
            "Download failed: the answer is empty.", url=location.shown, status_code=status
        )
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Unknown Status"
    error = DownloadFailed(
        f"Download failed: {status} {reason}",
        hint=_hint_for(location, status),
        url=location.shown,
        status_code=status,
    )
    raise TryAgainError(error) if status in _RETRYABLE_STATUSES else error


def _hint_for(location: Location, status: int) -> str | None:
    """Return what a caller can do about a missing or forbidden file."""
    if status in (401, 403, 404, 410) and is_signed(location.url):
        return "The link is signed and may have expired. Sign it again and send the job again."
    if status in (401, 403):
        return "The server requires a permission that this worker lacks. Send a signed link."
    if status in (404, 410):
        return "Check the address. The server has no file there."
    return None


def _refuse_compressed(location: Location, content_encoding: str) -> None:
    codings = {coding.strip().lower() for coding in content_encoding.split(",")}
    if codings.intersection(_COMPRESSED):
        raise DownloadFailed(
            "Download failed: the server sends the file compressed (Content-Encoding) although "
            "plain bytes were requested.",
            url=location.shown,
        )


def _connection_failure(location: Location, exc: Exception) -> DownloadFailed | TryAgainError:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _bad_certificate(location)
        cause = cause.__cause__ or cause.__context__
    if isinstance(exc, httpcore.ReadTimeout | httpcore.WriteTimeout):
        return TryAgainError(_stalled(location))
    return TryAgainError(
        SourceUnreachable(
            "Download failed: the connection could not be made or was cut off.", url=location.shown
        )
    )


def _bad_certificate(location: Location) -> DownloadFailed:
    return DownloadFailed(
        "Download failed: the server's certificate is not valid for this host.", url=location.shown
    )


def _stalled(location: Location) -> DownloadFailed:
    return DownloadFailed("Download failed: the server stopped sending.", url=location.shown)


def _unresolved(location: Location) -> DownloadFailed:
    return SourceUnreachable(
        "Download failed: the host name could not be resolved.", url=location.shown
    )


# --- file:// --------------------------------------------------------------------------------------


async def _copy(source: BinaryIO, body: Body) -> None:
    body.expect(os.fstat(source.fileno()).st_size)
    while chunk := await asyncio.to_thread(source.read, WRITE_BLOCK_BYTES):
        await body.add(chunk)
