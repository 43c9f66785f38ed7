"""The outputs of attempts in an S3-compatible bucket, without keys on the workers.

1. `sign_attempt`: a claim's answer gets addresses that allow one attempt to upload its video and
   its sidecar, each under the attempt's own name.
2. `publish`: once the store has accepted that attempt's report, both are copied, inside the object
   store, to the names of the job. Only accepted attempts are published, so a late one can upload
   what it likes without changing a result.
3. `discard`: what an attempt has uploaded is removed. A lifecycle rule of the bucket on
   `PREFIX/attempts/` removes what workers upload after that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx
from stamina import AsyncRetryingCaller

from orchestrator.outputs.errors import BucketRefused, BucketUnavailable, OutputMissing
from orchestrator.outputs.settings import BucketSettings
from orchestrator.outputs.signature import presign, sign_headers

TYPES = {".mp4": "video/mp4", ".json": "application/json"}
VIDEO, SIDECAR = TYPES
CALL_S = 60.0  # guess: a copy of 2 GB inside the store takes some seconds
TRIES = 4
READ_S = 7 * 24 * 3600  # how long a signed address for readers is valid, S3's limit
NOT_FOUND = 404
TRY_AGAIN = frozenset({408, 425, 429})  # and every 5xx


@dataclass(frozen=True, slots=True)
class AttemptOutput:
    """`output` in the answer to a claim (docs/protocol.md). Whoever has an address can use it.

    A PUT has to be sent with `headers`, and until `expires_at`.
    """

    video_put_url: str = field(repr=False)
    sidecar_put_url: str = field(repr=False)
    expires_at: datetime
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found:
    """An object that is there. `etag` changes with its content."""

    size_bytes: int
    etag: str


class OutputBucket:
    """Signs, publishes and discards outputs. It belongs to the event loop that used it first."""

    def __init__(
        self, settings: BucketSettings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._settings, self._clock = settings, clock
        self._client = httpx.AsyncClient(timeout=CALL_S)
        self._retry = AsyncRetryingCaller(attempts=TRIES, timeout=TRIES * CALL_S).on(
            BucketUnavailable
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def sign_attempt(self, job_id: str, attempt: int, *, valid_s: int) -> AttemptOutput:
        """Return the addresses for one attempt. No request is sent.

        `valid_s` is a little longer than the attempt's lease can be renewed.
        """
        now = self._clock()
        video, sidecar = (
            presign(
                "PUT",
                self._settings.url_of(self._settings.attempt_key(job_id, attempt, suffix)),
                self._settings.credentials,
                now,
                expires_s=valid_s,
            )
            for suffix in TYPES
        )
        return AttemptOutput(video, sidecar, now + timedelta(seconds=valid_s))

    def read_url(self, job_id: str) -> str:
        """Return the address of a published video, signed unless the bucket is public."""
        key = self._settings.published_key(job_id, VIDEO)
        if self._settings.public_base_url:
            path = self._settings.path_of(key).removeprefix(f"/{self._settings.bucket}")
            return f"{self._settings.public_base_url.rstrip('/')}{path}"
        url = self._settings.url_of(key)
        return presign("GET", url, self._settings.credentials, self._clock(), expires_s=READ_S)

    def plain_url(self, job_id: str) -> str:
        """Return the address of a published video without a signature."""
        return self.read_url(job_id).partition("?")[0]

    async def publish(self, job_id: str, attempt: int, size_bytes: int) -> str:
        """Publish what an accepted attempt has uploaded, and return `read_url`.

        The sidecar goes first, so that a published video always has one. It may be repeated, also
        after `discard`.

        Raises:
            OutputMissing: there is no sidecar, or no video of `size_bytes` bytes.
            BucketUnavailable, BucketRefused: as in `errors`.
        """
        found = [await self._find(self._source(job_id, attempt, suffix)) for suffix in TYPES]
        video, sidecar = found
        if video is None:
            published = await self._find(self._settings.published_key(job_id, VIDEO))
            if published is not None and published.size_bytes == size_bytes:
                return self.read_url(job_id)
            raise OutputMissing("The attempt has not uploaded its video.")
        if sidecar is None:
            raise OutputMissing("The attempt has not uploaded its sidecar.")
        if video.size_bytes != size_bytes:
            raise OutputMissing(
                f"The attempt reports a video of {size_bytes} bytes and has uploaded "
                f"{video.size_bytes}."
            )
        await self._copy(job_id, attempt, SIDECAR, sidecar)
        await self._copy(job_id, attempt, VIDEO, video)
        return self.read_url(job_id)

    async def discard(self, job_id: str, attempt: int) -> None:
        """Remove what an attempt has uploaded, if anything.

        Raises:
            BucketUnavailable, BucketRefused: as in `errors`.
        """
        for suffix in TYPES:
            await self._call("DELETE", self._source(job_id, attempt, suffix))

    def _source(self, job_id: str, attempt: int, suffix: str) -> str:
        return self._settings.attempt_key(job_id, attempt, suffix)

    async def _find(self, key: str) -> _Found | None:
        answer = await self._call("HEAD", key)
        if answer.status_code == NOT_FOUND:
            return None
        return _Found(int(answer.headers["content-length"]), answer.headers["etag"])

    async def _copy(self, job_id: str, attempt: int, suffix: str, found: _Found) -> None:
        headers = {
            "x-amz-copy-source": self._settings.path_of(self._source(job_id, attempt, suffix)),
            # So that only what has been checked is published, even if it is uploaded again now.
            "x-amz-copy-source-if-match": found.etag,
            "x-amz-metadata-directive": "REPLACE",
            "content-type": TYPES[suffix],
        }
        key = self._settings.published_key(job_id, suffix)
        answer = await self._call("PUT", key, headers)
        # A copy that fails halfway is answered with 200 and an error in the body.
        if answer.status_code == NOT_FOUND or b"<CopyObjectResult" not in answer.content:
            raise BucketUnavailable("The object store did not copy an output.")

    async def _call(
        self, method: str, key: str, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Return the answer, which is 2xx or 404."""
        return await self._retry(self._call_once, method, key, headers or {})

    async def _call_once(self, method: str, key: str, headers: Mapping[str, str]) -> httpx.Response:
        url, login = self._settings.url_of(key), self._settings.credentials
        signed = sign_headers(method, url, login, self._clock(), headers=headers)
        try:
            answer = await self._client.request(method, url, headers=signed)
        except httpx.HTTPError as exc:
            name = type(exc).__name__
            raise BucketUnavailable(f"The object store cannot be reached ({name}).") from None
        status = answer.status_code
        if status in TRY_AGAIN or status >= 500:
            raise BucketUnavailable(f"The object store answered {status} to {method}.")
        if not answer.is_success and status != NOT_FOUND:
            raise BucketRefused(f"The object store answered {status} to {method}.")
        return answer
