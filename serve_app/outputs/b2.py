"""Outputs in a Backblaze B2 bucket.

b2sdk implements the protocol: authorisation and its renewal, upload addresses, SHA-1, parallel
parts, resumption of unfinished large files. This module adds the deadlines and retries:

- Every try runs in a thread of its own under a hard deadline. When it passes, the sockets of the
  try are shut down (b2_transport.py), which ends its threads, and the caller continues at once.
  Only a thread that hangs in the system's resolver lasts longer, up to the resolver's limits.
- A try uses at most two upload addresses, as B2 requires if one is busy. There are three tries,
  with jitter. After a failure the next one begins with a new authorisation, new connections and
  new upload addresses.
- Unfinished large files of a failed `put` are cancelled.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from b2sdk.v3 import (
    B2Http,
    B2RawHTTPApi,
    Bucket,
    InMemoryAccountInfo,
    InMemoryCache,
)
from b2sdk.v3.exception import (
    B2Error,
    CapExceeded,
    FileNotPresent,
    MaxRetriesExceeded,
    NonExistentBucket,
    NotAllowedByAppKeyError,
    RestrictedBucket,
    Unauthorized,
)

from musetalk_pipeline.errors import UploadFailed
from musetalk_pipeline.retries import retrying
from serve_app.outputs.b2_transport import DeadlinePassedError, GuardedApi, GuardedConfig, TryGuard
from serve_app.outputs.store import (
    SIDECAR_SUFFIX,
    VIDEO_SUFFIX,
    FileDigests,
    Place,
    StoredOutput,
    file_digests,
    object_name,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class B2Settings:
    """`B2_KEY_ID`, `B2_APP_KEY`, `B2_BUCKET_NAME`, `B2_PREFIX`, and the limits of an upload.

    `realm` is `production` or the address of another service with the B2 native API.
    """

    key_id: str = field(repr=False)
    app_key: str = field(repr=False)
    bucket: str
    prefix: str = "avatar/outputs"
    realm: str = "production"
    try_s: float = 300.0  # docs/protocol.md §1: upload limit a try
    tries: int = 3
    backoff_s: float = 1.0
    stall_s: float = 60.0
    connect_s: float = 15.0
    control_s: float = 30.0  # of a check, and of cancelling unfinished files
    part_threads: int = 4


class B2Store:
    """Stores outputs in one bucket, below one prefix."""

    name = "b2"

    def __init__(
        self, settings: B2Settings, *, raw_api: Callable[[B2Http], Any] = B2RawHTTPApi
    ) -> None:
        """`raw_api` lets tests use the vendor's simulator instead of HTTP."""
        self._settings = settings
        self._raw_api = raw_api
        self._login: _Login | None = None

    def __repr__(self) -> str:
        return f"B2Store({self._settings.bucket}/{self._settings.prefix})"

    def check(self) -> None:
        """Authorise, find the bucket, and check that the key may write below the prefix."""
        self._try_often("Storage check failed", self._settings.control_s, self._check_rights)

    def place(self, job_id: str) -> Place:
        return Place(self._settings.bucket, self._key(job_id, VIDEO_SUFFIX))

    def has(self, job_id: str) -> bool:
        """Find the video by its name, once. Return True if the service does not answer that."""

        def find(bucket: Bucket) -> bool:
            try:
                bucket.get_file_info_by_name(self._key(job_id, VIDEO_SUFFIX))
            except FileNotPresent:
                return False
            return True

        try:
            return self._within(self._settings.control_s, find)
        except Exception as exc:
            # The SDK raises built-in types, too. None of them means that the file does not exist.
            logger.warning("an output in B2 cannot be checked", extra={"fault": type(exc).__name__})
            return True

    def put(self, job_id: str, video: Path, sidecar: bytes) -> StoredOutput:
        """Upload the video, then its sidecar. A repeated upload becomes the newest version."""
        try:
            digests = file_digests(video)
        except OSError as exc:
            raise UploadFailed("Upload failed: the finished video cannot be read.") from exc
        key = self._key(job_id, VIDEO_SUFFIX)
        url = self._put_video(key, video, digests)
        sidecar_key = self._key(job_id, SIDECAR_SUFFIX)
        self._try_often(
            "Upload failed",
            self._settings.try_s,
            lambda bucket: bucket.upload_bytes(
                sidecar, sidecar_key, content_type="application/json"
            ),
        )
        return StoredOutput(url, self._settings.bucket, key, digests.size_bytes, digests.sha256)

    def _key(self, job_id: str, suffix: str) -> str:
        prefix = self._settings.prefix.strip("/")
        name = object_name(job_id) + suffix
        return f"{prefix}/{name}" if prefix else name

    def _put_video(self, key: str, video: Path, digests: FileDigests) -> str:
        unfinished: set[str] = set()

        def upload(bucket: Bucket) -> str:
            bucket.api.session.unfinished = unfinished
            version = bucket.upload_local_file(
                video, key, content_type="video/mp4", sha1_sum=digests.sha1
            )
            if version.size != digests.size_bytes:
                raise _IncompleteError
            return str(bucket.get_download_url(key))

        try:
            return self._try_often("Upload failed", self._settings.try_s, upload)
        finally:
            if unfinished:
                self._cancel(unfinished)

    def _cancel(self, file_ids: set[str]) -> None:
        """Cancel unfinished large files, and log those that cannot be cancelled."""

        def cancel(bucket: Bucket) -> None:
            for file_id in tuple(file_ids):
                with contextlib.suppress(B2Error):
                    bucket.api.cancel_large_file(file_id)
                    file_ids.discard(file_id)

        with contextlib.suppress(Exception):
            self._within(self._settings.control_s, cancel)
        if file_ids:
            logger.warning(
                "unfinished large files stay in the bucket until its life-cycle rule removes them",
                extra={"count": len(file_ids)},
            )

    def _check_rights(self, bucket: Bucket) -> None:
        allowed = bucket.api.account_info.get_allowed()
        if "writeFiles" not in allowed["capabilities"]:
            raise _RightsError("the key may not write files")
        if not self._key("job", VIDEO_SUFFIX).startswith(allowed.get("namePrefix") or ""):
            raise _RightsError("the key may not write below B2_PREFIX")

    # --- tries and deadlines ----------------------------------------------------------------------

    def _try_often(self, what: str, try_s: float, call: Callable[[Bucket], T]) -> T:
        """Make `call` up to `tries` times; say `what` failed and why if it never succeeds."""
        again = retrying(self._settings.tries, self._settings.backoff_s)
        try:
            return again(_may_pass, self._logged, try_s, call)
        # The SDK asserts, warns and raises bare types too; a failed try is a failed try.
        except Exception as raised:
            reason = self._reason(_last_cause(raised), try_s)
        # Not chained: the SDK's messages can hold upload tokens.
        raise UploadFailed(f"{what}: {reason}.", bucket=self._settings.bucket)

    def _logged(self, try_s: float, call: Callable[[Bucket], T]) -> T:
        """Make `call` once; log it if it fails."""
        try:
            return self._within(try_s, call)
        except Exception as raised:
            exc = _last_cause(raised)
            extra = {"fault": type(exc).__name__, "reason": self._reason(exc, try_s)}
            logger.warning("B2 request failed", extra=extra)
            raise

    def _within(self, seconds: float, call: Callable[[Bucket], T]) -> T:
        """Make `call` in a thread of its own. Give it up when `seconds` have passed."""
        settings = self._settings
        guard = TryGuard(
            time.monotonic() + seconds, stall_s=settings.stall_s, connect_s=settings.connect_s
        )
        outcome: queue.SimpleQueue[tuple[list[T], Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put(([self._with_bucket(guard, call)], None))
            except Exception as exc:
                outcome.put(([], exc))

        # A daemon, because a thread that hangs in the resolver must not delay the end of the
        # process.
        threading.Thread(target=run, name="b2-try", daemon=True).start()
        try:
            results, fault = outcome.get(timeout=seconds)
        except queue.Empty:
            results, fault = [], DeadlinePassedError()
        guard.close()
        if fault is not None:
            self._login = None
            raise fault
        return results[0]

    def _with_bucket(self, guard: TryGuard, call: Callable[[Bucket], T]) -> T:
        """Log in if necessary, find the bucket, and make `call` with it."""
        login = self._login or _Login(InMemoryAccountInfo(), InMemoryCache())
        settings = self._settings
        api = GuardedApi(
            login.account,
            login.cache,
            max_upload_workers=settings.part_threads,
            api_config=GuardedConfig(guard, self._raw_api),
        )
        try:
            if login is not self._login:
                api.authorize_account(settings.key_id, settings.app_key, realm=settings.realm)
                self._login = login
            return call(api.get_bucket_by_name(settings.bucket))
        finally:
            # The SDK never ends its upload threads. A new size makes it wait for the present ones
            # and end them. The new pool starts no threads until it is used.
            api.services.upload_manager.set_thread_pool_size(settings.part_threads + 1)

    def _reason(self, exc: Exception, try_s: float) -> str:
        """Return the reason of a fault of the SDK for the error message."""
        bucket = self._settings.bucket
        if isinstance(exc, DeadlinePassedError):
            return f"Backblaze B2 did not finish within {try_s:g} s"
        if isinstance(exc, _RightsError):
            return str(exc)
        if isinstance(exc, NonExistentBucket | RestrictedBucket | NotAllowedByAppKeyError):
            return (
                f"the bucket {bucket!r} does not exist or the key may not use it (B2_BUCKET_NAME)"
            )
        if isinstance(exc, Unauthorized):
            return "Backblaze B2 refuses the key (B2_KEY_ID, B2_APP_KEY)"
        if isinstance(exc, CapExceeded):
            return "a cap of the Backblaze B2 account is reached"
        return f"Backblaze B2 cannot be reached or answers with an error ({type(exc).__name__})"


def _last_cause(exc: Exception) -> Exception:
    """Return the last of the errors that the SDK collects when it gives up on upload addresses."""
    if isinstance(exc, MaxRetriesExceeded) and exc.exception_info_list:
        return exc.exception_info_list[-1]  # type: ignore[no-any-return]
    return exc


def _may_pass(raised: Exception) -> bool:
    """Return whether another try can help: not if the key, its rights or the account are wrong."""
    exc = _last_cause(raised)
    if isinstance(exc, Unauthorized):
        return bool(exc.code != "unauthorized")
    return not isinstance(
        exc,
        _RightsError | NonExistentBucket | RestrictedBucket | NotAllowedByAppKeyError | CapExceeded,
    )


@dataclass(frozen=True, slots=True)
class _Login:
    """Authorisation, upload addresses and bucket ids, shared by all tries until one fails."""

    account: InMemoryAccountInfo
    cache: InMemoryCache


class _RightsError(Exception):
    """The key lacks a right, which the message names."""


class _IncompleteError(Exception):
    """The stored file is not as long as the video."""
