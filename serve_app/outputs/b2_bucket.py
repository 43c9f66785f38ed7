"""One Backblaze B2 bucket: tries with deadlines around b2sdk.

b2sdk implements the protocol: authorisation and its renewal, upload addresses, SHA-1, parallel
parts, resumption of unfinished large files. This module adds the deadlines and retries:

- Every try runs in a thread of its own under a hard deadline. When it passes, the sockets of the
  try are shut down (b2_transport.py), which ends its threads, and the caller continues at once.
  Only a thread that hangs in the system's resolver lasts longer, up to the resolver's limits.
- A try uses at most two upload addresses, as B2 requires if one is busy. There are three tries,
  with jitter. After a failure the next one begins with a new authorisation, new connections and
  new upload addresses.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    MaxRetriesExceeded,
    NonExistentBucket,
    NotAllowedByAppKeyError,
    RestrictedBucket,
    Unauthorized,
)

from musetalk_pipeline.errors import UploadFailed
from musetalk_pipeline.retries import retrying
from serve_app.outputs.b2_transport import DeadlinePassedError, GuardedApi, GuardedConfig, TryGuard

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class B2Settings:
    """`B2_KEY_ID`, `B2_APP_KEY`, `B2_BUCKET_NAME`, `B2_PREFIX`, and the limits of an upload.

    `realm` is `production` or the address of another service that speaks the B2 native API.
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


class B2Bucket:
    """One bucket and the prefix in it below which everything is stored."""

    def __init__(
        self, settings: B2Settings, *, raw_api: Callable[[B2Http], Any] = B2RawHTTPApi
    ) -> None:
        """`raw_api` lets tests use the vendor's simulator instead of HTTP."""
        self.settings = settings
        self._raw_api = raw_api
        self._login: _Login | None = None

    def key(self, name: str) -> str:
        """Return the key of a file, given its name below the prefix."""
        prefix = self.settings.prefix.strip("/")
        return f"{prefix}/{name}" if prefix else name

    def try_often(self, what: str, try_s: float, work: Callable[[Bucket], T]) -> T:
        """Do `work` up to `tries` times, each within `try_s`.

        Raises:
            UploadFailed: no try succeeded. The message says `what` failed and why.
        """
        again = retrying(self.settings.tries, self.settings.backoff_s)
        try:
            return again(_may_pass, self._logged, try_s, work)
        # The SDK asserts, warns and raises bare types too; a failed try is a failed try.
        except Exception as raised:
            reason = self._reason(_last_cause(raised), try_s)
        # Not chained: the SDK's messages can hold upload tokens.
        raise UploadFailed(f"{what}: {reason}.", bucket=self.settings.bucket)

    def cancel(self, file_ids: set[str]) -> None:
        """Cancel unfinished large files, and log those that cannot be cancelled."""

        def cancel(bucket: Bucket) -> None:
            for file_id in tuple(file_ids):
                with contextlib.suppress(B2Error):
                    bucket.api.cancel_large_file(file_id)
                    file_ids.discard(file_id)

        with contextlib.suppress(Exception):
            self.within(self.settings.control_s, cancel)
        if file_ids:
            logger.warning(
                "unfinished large files stay in the bucket until its life-cycle rule removes them",
                extra={"count": len(file_ids)},
            )

    def _logged(self, try_s: float, work: Callable[[Bucket], T]) -> T:
        """Do `work` once; log it if it fails."""
        try:
            return self.within(try_s, work)
        except Exception as raised:
            exc = _last_cause(raised)
            extra = {"fault": type(exc).__name__, "reason": self._reason(exc, try_s)}
            logger.warning("B2 request failed", extra=extra)
            raise

    def within(self, seconds: float, work: Callable[[Bucket], T]) -> T:
        """Call `work` once, in a thread of its own, and give it up when `seconds` have passed.

        Raises:
            Exception: the SDK raises built-in types in addition to its own.
        """
        settings = self.settings
        guard = TryGuard(
            time.monotonic() + seconds, stall_s=settings.stall_s, connect_s=settings.connect_s
        )
        outcome: queue.SimpleQueue[tuple[list[T], Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put(([self._with_bucket(guard, work)], None))
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

    def _with_bucket(self, guard: TryGuard, work: Callable[[Bucket], T]) -> T:
        """Log in if necessary, find the bucket, and call `work` with it."""
        login = self._login or _Login(InMemoryAccountInfo(), InMemoryCache())
        settings = self.settings
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
            return work(api.get_bucket_by_name(settings.bucket))
        finally:
            # The SDK never ends its upload threads. A new size makes it wait for the present ones
            # and end them. The new pool starts no threads until it is used.
            api.services.upload_manager.set_thread_pool_size(settings.part_threads + 1)

    def _reason(self, exc: Exception, try_s: float) -> str:
        """Return the reason of a fault of the SDK for the error message."""
        bucket = self.settings.bucket
        if isinstance(exc, DeadlinePassedError):
            return f"Backblaze B2 did not finish within {try_s:g} s"
        if isinstance(exc, RightsError):
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
    """Tell whether trying again can help: not if the key, its rights or the account are wrong."""
    exc = _last_cause(raised)
    if isinstance(exc, Unauthorized):
        return bool(exc.code != "unauthorized")
    return not isinstance(
        exc,
        RightsError | NonExistentBucket | RestrictedBucket | NotAllowedByAppKeyError | CapExceeded,
    )


@dataclass(frozen=True, slots=True)
class _Login:
    """Authorisation, upload addresses and bucket ids, shared by all tries until one fails."""

    account: InMemoryAccountInfo
    cache: InMemoryCache


class RightsError(Exception):
    """The key lacks a right, which the message names."""
