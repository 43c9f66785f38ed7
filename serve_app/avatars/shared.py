"""The copy of all avatars in Backblaze B2, which the machines of a fleet share.

It lies below `avatars/` in the prefix of the outputs, because a key may be limited to that prefix.
Every call has a deadline, uploads wait in a bounded queue behind the jobs, and after a failure the
copy is left alone for a while. So a service that is slow or away costs a job next to nothing.

B2 does not note when a file is read. So a job that uses an avatar uploads an empty file `used` to
it, unless this process has done so lately, and shared_retention.py removes what has no new file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from b2sdk.v3 import Bucket, FileVersion
from b2sdk.v3.exception import B2Error, FileNotPresent

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
USED = "used"  # this name says by the time of its upload when an avatar was used
MOST_MARKED = 10_000  # avatars whose last mark is remembered
THREAD = "avatar-uploads"


@dataclass(frozen=True, slots=True)
class _Upload:
    """`replaces`: an older version, which is removed afterwards if the key allows it."""

    key: str
    content: bytes
    replaces: FileVersion | None = None


class SharedAvatars:
    """Files of avatars in a bucket. `mark_s`: between two marks that an avatar is used."""

    def __init__(
        self,
        bucket: B2Bucket,
        clock: Callable[[], float] = time.monotonic,
        *,
        mark_s: float = 86_400.0,
    ) -> None:
        self._bucket = bucket
        self._mark_s = mark_s
        self._marked: OrderedDict[str, float] = OrderedDict()  # when, by avatar
        self._clock = clock
        self._paused_until = float("-inf")
        self._lock = threading.Lock()
        self._uploads: deque[_Upload] = deque()  # the first is running
        self._is_uploading = False

    def names(self, avatar_id: str) -> frozenset[str]:
        """Return the names of an avatar's files, which a job is about to use; none if the service
        does not answer soon.
        """
        prefix = self._key(avatar_id, "")

        def list_files(bucket: Bucket) -> dict[str, FileVersion]:
            found: dict[str, FileVersion] = {}
            for version, _ in bucket.ls(prefix, latest_only=True, fetch_count=1000):
                found[version.file_name.removeprefix(prefix)] = version
                if len(found) == MAX_FILES:
                    break
            return found

        if self._is_paused:
            return frozenset()
        try:
            found = self._bucket.within(LIST_S, list_files)
        except Exception as exc:
            self._pause("listed", exc)
            return frozenset()
        if found:
            self._mark_used(avatar_id, found.get(USED))
        return frozenset(found) - {USED}

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
        self._upload_later(_Upload(self._key(avatar_id, name), content))

    def _mark_used(self, avatar_id: str, last: FileVersion | None) -> None:
        """Note in the bucket that an avatar is used, unless that was done lately."""
        with self._lock:
            if self._clock() - self._marked.get(avatar_id, float("-inf")) < self._mark_s:
                return
            self._marked[avatar_id] = self._clock()
            self._marked.move_to_end(avatar_id)
            while len(self._marked) > MOST_MARKED:
                self._marked.popitem(last=False)
        self._upload_later(_Upload(self._key(avatar_id, USED), b"", last))

    def _upload_later(self, upload: _Upload) -> None:
        with self._lock:
            waiting_bytes = sum(len(waiting.content) for waiting in self._uploads)
            if self._is_paused or waiting_bytes + len(upload.content) > WAITING_BYTES:
                return
            self._uploads.append(upload)
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
                upload = self._uploads[0]
            self._upload(upload)
            with self._lock:
                self._uploads.popleft()

    def _upload(self, what: _Upload) -> None:
        unfinished: set[str] = set()

        def upload(bucket: Bucket) -> None:
            bucket.api.session.unfinished = unfinished
            kind = "application/octet-stream"
            bucket.upload_bytes(what.content, what.key, content_type=kind)
            if what.replaces is not None:
                with contextlib.suppress(B2Error):  # another machine may have removed it
                    bucket.api.delete_file_version(what.replaces.id_, what.replaces.file_name)

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
