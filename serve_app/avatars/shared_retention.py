"""How long avatars stay in Backblaze B2: as long as some machine of the fleet uses them.

The time of use is that of the newest file of an avatar, a block or the mark `used`. Only B2's own
clock counts: a sweep begins with the upload of a file `swept`, whose time is now. That file also
tells the other machines that a sweep has been made, so a fleet makes one a day.

An avatar that is removed while a job begins to use it costs that job the work of making it again.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TypeVar

from b2sdk.v3 import Bucket, FileVersion

from musetalk_pipeline.errors import UploadFailed
from serve_app.avatars.shared import FOLDER
from serve_app.outputs.b2_bucket import B2Bucket

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRY_S = 6 * 3600.0  # between two tries of a machine
SWEEP_S = 86_400.0  # between two sweeps of all machines
FIRST_S = (60.0, 900.0)  # after the start of a machine, so that a fleet does not start at once
LIST_S, REMOVE_S = 600.0, 60.0
SWEPT = "swept"
_AVATAR_ID = re.compile(r"[0-9a-f]{32}")


class SharedRetention:
    """Removes avatars that nobody has used for `keep_s` seconds."""

    def __init__(self, bucket: B2Bucket, keep_s: float) -> None:
        self._bucket = bucket
        self._keep_s = keep_s
        self._prefix = bucket.key(f"{FOLDER}/")

    def sweep(self) -> list[str]:
        """Remove what is too old, unless that was done within a day. Return the removed avatars.

        Raises:
            UploadFailed: the bucket cannot be reached, or the key may not list or delete files.
        """
        now_ms = self._often(REMOVE_S, self._begin)
        if now_ms is None:
            return []
        oldest_ms = now_ms - self._keep_s * 1000
        unused = self._often(LIST_S, lambda bucket: list(self._unused(bucket, oldest_ms)))
        removed = [avatar for avatar in unused if self._remove(avatar, oldest_ms)]
        if removed:
            logger.info("unused shared avatars removed", extra={"avatars": len(removed)})
        return removed

    def start(self) -> None:
        """Sweep a few times a day, in a thread that ends with the process."""

        def loop() -> None:
            time.sleep(random.uniform(*FIRST_S))
            while True:
                try:
                    self.sweep()
                except UploadFailed as exc:
                    logger.warning("shared avatars not swept", extra={"error": exc.message})
                except Exception:  # the next round may succeed
                    logger.exception("shared avatars not swept")
                time.sleep(TRY_S)

        threading.Thread(target=loop, name="shared-avatars", daemon=True).start()

    def _begin(self, bucket: Bucket) -> int | None:
        """Return what time it is in B2, in milliseconds; None if there was a sweep lately."""
        key = self._prefix + SWEPT
        earlier = [version for version, _ in bucket.ls(key, latest_only=False)]
        mine = bucket.upload_bytes(b"", key, content_type="application/octet-stream")
        now_ms: int = mine.upload_timestamp
        last_ms = max((version.upload_timestamp for version in earlier), default=0)
        is_due = now_ms - last_ms >= SWEEP_S * 1000
        _delete(bucket, earlier if is_due else [mine])
        return now_ms if is_due else None

    def _unused(self, bucket: Bucket, oldest_ms: float) -> Iterator[str]:
        """Yield the avatars of which no file is newer."""
        files = bucket.ls(self._prefix, latest_only=True, recursive=True, fetch_count=1000)
        versions = (version for version, _ in files)
        for avatar, group in groupby(versions, key=self._avatar_of):
            newest_ms = max(version.upload_timestamp for version in group)
            if _AVATAR_ID.fullmatch(avatar) and newest_ms < oldest_ms:
                yield avatar

    def _remove(self, avatar: str, oldest_ms: float) -> bool:
        """Remove an avatar unless it has been used meanwhile; return whether it is gone."""

        def remove(bucket: Bucket) -> bool:
            versions = [one for one, _ in bucket.ls(f"{self._prefix}{avatar}/", latest_only=False)]
            if any(version.upload_timestamp >= oldest_ms for version in versions):
                return False
            _delete(bucket, versions)
            return True

        return self._often(REMOVE_S, remove)

    def _avatar_of(self, version: FileVersion) -> str:
        avatar: str = version.file_name.removeprefix(self._prefix).partition("/")[0]
        return avatar

    def _often(self, try_s: float, work: Callable[[Bucket], T]) -> T:
        return self._bucket.try_often("The shared avatars cannot be swept", try_s, work)


def _delete(bucket: Bucket, versions: list[FileVersion]) -> None:
    for version in versions:
        bucket.api.delete_file_version(version.id_, version.file_name)
