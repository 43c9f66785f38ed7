"""The inputs of a job as callers name them: addresses, files, and uploads."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from lipsync_client.effects import Flow
from lipsync_client.exchange import Retries
from lipsync_client.uploading import upload_file
from lipsync_client.values import Upload

Source = str | os.PathLike[str] | Upload

# A drive letter of Windows is no scheme.
_ADDRESS = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+://|data:)")


class JobFields(TypedDict, total=False):
    """What a job may have in addition to its two inputs; docs/api.md explains each."""

    avatar_id: str
    aspect_ratio: str
    resolution: str
    params: dict[str, Any]
    job_id: str
    webhook_url: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to submit. `video` and `audio` are addresses, files, or uploads; files are uploaded.
    `video` is None if the job has the `avatar_id` of a prepared avatar instead.
    """

    video: Source | None
    audio: Source
    avatar_id: str | None = None
    aspect_ratio: str | None = None
    resolution: str | None = None
    params: dict[str, Any] | None = None
    job_id: str | None = None
    webhook_url: str | None = None
    metadata: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of a request but for its inputs, without those that are not given."""
        named = {
            "avatar_id": self.avatar_id,
            "aspect_ratio": self.aspect_ratio,
            "resolution": self.resolution,
            "params": self.params,
            "musetalk_job_id": self.job_id,
            "webhook_url": self.webhook_url,
            "metadata": self.metadata,
        }
        return {name: value for name, value in named.items() if value is not None}


def is_address(source: Source) -> bool:
    """Return whether a source is an address rather than a file."""
    return isinstance(source, str) and _ADDRESS.match(source) is not None


class Inputs:
    """Turns sources into addresses. A file that is named twice is uploaded once."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._uploaded: dict[Path, Upload] = {}

    def address(self, source: Source) -> Flow[str]:
        """Return the address of a source, which is uploaded if it is a file.

        Raises:
            OSError: the file cannot be read.
            NotSupported: the server takes no uploads.
        """
        if isinstance(source, Upload):
            return source.url
        if isinstance(source, str) and is_address(source):
            return source
        path = Path(source).expanduser().absolute()
        if path not in self._uploaded:
            self._uploaded[path] = yield from upload_file(path, self._retries)
        return self._uploaded[path].url

    def body(self, job: NewJob) -> Flow[dict[str, Any]]:
        """Return the fields of a job, as a request has them."""
        body = job.fields()
        if job.video is not None:
            body["video_url"] = yield from self.address(job.video)
        body["audio_url"] = yield from self.address(job.audio)
        return body
