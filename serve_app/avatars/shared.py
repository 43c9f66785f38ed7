"""The copy of all avatars in Backblaze B2, which the machines of a fleet share.

It lies below `avatars/` in the prefix of the outputs, because a key may be limited to that prefix.
Every call has a deadline, uploads wait in a bounded queue behind the jobs, and after a failure the
copy is left alone for a while. So a service that is slow or away costs a job next to nothing.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from b2sdk.v3 import Bucket
from b2sdk.v3.exception import FileNotPresent

from serve_app.outputs.b2_bucket import B2Bucket

logger = logging.getLogger(__name__)

LIST_S = 3.0
LEAST_GET_S = 1.0  # a new connection and its login take some 0.5 s
PUT_S = 120.0
DELETE_S = 30.0
PAUSE_S = 300.0  # after a failure
WAITING_BYTES = 256_000_000  # of uploads; further ones are left out
MAX_FILE_BYTES = 1 << 30
MAX_FILES = 10_000  # of one avatar that are listed
FOLDER = "avatars"
THREAD = "avatar-uploads"


class SharedAvatars:
    """Files of avatars in a bucket."""

    def __init__(self, bucket: B2Bucket, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = bucket
        self._clock = clock
        self._paused_until = float("-inf")
        self._lock = threading.Lock()
        self._uploads: deque[tuple[str, bytes]] = deque()  # keys and contents; the first is running
        self._is_uploading = False

    def names(self, avatar_id: str) -> frozenset[str]:
        """Return the names of an avatar's files; none if the service does not answer soon."""
        prefix = self._key(avatar_id, "")

        def list_names(bucket: Bucket) -> frozenset[str]:
            found = set()
            for version, _ in bucket.ls(prefix, latest_only=True, fetch_count=1000):
                found.add(version.file_name.removeprefix(prefix))
                if len(found) == MAX_FILES:
                    break
            return frozenset(found)

        if self._is_paused:
            return frozenset()
        try:
            return self._bucket.within(LIST_S, list_names)
        except Exception as exc:
            self._pause("listed", exc)
            return frozenset()

    def get(self, avatar_id: str, name: str, within_s: float) -> bytes | None:
        """Return a file; None if there is none, or if it does not arrive `within_s` seconds."""
        content = io.BytesIO()

        def download(bucket: Bucket) -> bytes:
            found = bucket.download_file_by_name(self._key(avatar_id, name))
            if found.download_version.content_length > MAX_FILE_BYTES:
                return b""  # which no reader accepts
            found.save(content, allow_seeking=False)  # in this thread, and not in a pool
            return content.getvalue()

        if self._is_paused:
            return None
        try:
            return self._bucket.within(max(LEAST_GET_S, within_s), download)
        except FileNotPresent:
            return None
        except Exception as exc:
            self._pause("downloaded", exc)
            return None

    def delete(self, avatar_id: str) -> None:
        """Remove an avatar, as far as the key allows it."""

        def delete(bucket: Bucket) -> None:
            for version, _ in bucket.ls(self._key(avatar_id, ""), latest_only=False):
                bucket.api.delete_file_version(version.id_, version.file_name)

        try:
            self._bucket.within(DELETE_S, delete)
        except Exception as exc:
            extra = {"avatar": avatar_id, "fault": type(exc).__name__}
            logger.warning("a shared avatar is not deleted", extra=extra)

    def put_later(self, avatar_id: str, name: str, content: bytes) -> None:
        """Upload a file in the background; leave it out if too many bytes wait already."""
        with self._lock:
            waiting_bytes = sum(len(waiting) for _, waiting in self._uploads)
            if self._is_paused or waiting_bytes + len(content) > WAITING_BYTES:
                return
            self._uploads.append((self._key(avatar_id, name), content))
            if not self._is_uploading:
                self._is_uploading = True
                threading.Thread(target=self._upload_all, name=THREAD, daemon=True).start()

    def _upload_all(self) -> None:
        """Upload what waits, one file after the other, until nothing does."""
        while True:
            with self._lock:
                if self._is_paused:
                    self._uploads.clear()
                if not self._uploads:
                    self._is_uploading = False
                    return
                key, content = self._uploads[0]
            self._upload(key, content)
            with self._lock:
                self._uploads.popleft()

    def _upload(self, key: str, content: bytes) -> None:
        unfinished: set[str] = set()

        def upload(bucket: Bucket) -> None:
            bucket.api.session.unfinished = unfinished
            bucket.upload_bytes(content, key, content_type="application/octet-stream")

        try:
            self._bucket.within(PUT_S, upload)
        except Exception as exc:
            self._pause("uploaded", exc)
        finally:
            if unfinished:
                self._bucket.cancel(unfinished)

    @property
    def _is_paused(self) -> bool:
        return self._clock() < self._paused_until

    def _pause(self, what: str, exc: Exception) -> None:
        self._paused_until = self._clock() + PAUSE_S
        # Without the message, because the SDK's can hold tokens.
        extra = {"not": what, "fault": type(exc).__name__, "pause_s": PAUSE_S}
        logger.warning("the shared avatars are left alone for a while", extra=extra)

    def _key(self, avatar_id: str, name: str) -> str:
        return self._bucket.key(f"{FOLDER}/{avatar_id}/{name}")
