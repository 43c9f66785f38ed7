"""Outputs in a Backblaze B2 bucket. Unfinished large files of a failed `put` are cancelled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from b2sdk.v3 import B2Http, B2RawHTTPApi, Bucket
from b2sdk.v3.exception import FileNotPresent

from musetalk_pipeline.errors import UploadFailed
from serve_app.outputs.b2_bucket import B2Bucket, B2Settings, RightsError
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


class B2Store:
    """Stores outputs in one bucket, below one prefix."""

    name = "b2"

    def __init__(
        self, settings: B2Settings, *, raw_api: Callable[[B2Http], Any] = B2RawHTTPApi
    ) -> None:
        """`raw_api` lets tests use the vendor's simulator instead of HTTP."""
        self._settings = settings
        self._bucket = B2Bucket(settings, raw_api=raw_api)

    def __repr__(self) -> str:
        return f"B2Store({self._settings.bucket}/{self._settings.prefix})"

    def check(self) -> None:
        """Authorise, find the bucket, and check that the key may write below the prefix."""
        self._bucket.try_often("Storage check failed", self._settings.control_s, self._check_rights)

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
            return self._bucket.within(self._settings.control_s, find)
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
        self._bucket.try_often(
            "Upload failed",
            self._settings.try_s,
            lambda bucket: bucket.upload_bytes(
                sidecar, sidecar_key, content_type="application/json"
            ),
        )
        return StoredOutput(url, self._settings.bucket, key, digests.size_bytes, digests.sha256)

    def _key(self, job_id: str, suffix: str) -> str:
        return self._bucket.key(object_name(job_id) + suffix)

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
            return self._bucket.try_often("Upload failed", self._settings.try_s, upload)
        finally:
            if unfinished:
                self._bucket.cancel(unfinished)

    def _check_rights(self, bucket: Bucket) -> None:
        allowed = bucket.api.account_info.get_allowed()
        if "writeFiles" not in allowed["capabilities"]:
            raise RightsError("the key may not write files")
        if not self._key("job", VIDEO_SUFFIX).startswith(allowed.get("namePrefix") or ""):
            raise RightsError("the key may not write below B2_PREFIX")


class _IncompleteError(Exception):
    """The stored file is not as long as the video."""
