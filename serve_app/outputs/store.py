"""The interface of the stores, the names of outputs, and the sidecar.

The stores are in b2.py (Backblaze B2), local.py and put.py (a signed address). `put` is
synchronous, so call it in a thread. It ends by itself and may be repeated: the key follows from the
job id, the video is complete before its sidecar appears, and an interrupted `put` leaves nothing
that looks like a result.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

VIDEO_SUFFIX = ".mp4"
SIDECAR_SUFFIX = ".json"

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_UNSAFE_RUN = re.compile(r"[^A-Za-z0-9_-]+")
_SLUG_CHARS = 64
READ_BLOCK_BYTES = 1 << 20


def object_name(job_id: str) -> str:
    """Return the name, without suffix, under which the output of `job_id` is stored.

    Callers choose job ids, which may contain anything. Plain ids are used as they are. The name of
    any other id is a readable part of it, `~` and a digest. As no plain id contains `~`, different
    ids never have the same name. No name contains a separator, begins with a dot or is longer than
    128 characters.
    """
    if _PLAIN_ID.fullmatch(job_id):
        return job_id
    slug = _UNSAFE_RUN.sub("-", job_id)[:_SLUG_CHARS].strip("-_")
    digest = hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{slug or 'job'}~{digest}"


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a job's video. It is known before the video is stored, for the sidecar."""

    bucket: str | None
    file_name: str | None


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """A stored video. `bucket` and `file_name` are set if it is in B2.

    `url` is its address. That of a local file is the path under this worker (`/files/…`).
    `is_reported`: an orchestrator publishes it, and is told its size and its digest.
    """

    url: str
    bucket: str | None
    file_name: str | None
    size_bytes: int
    sha256: str
    is_reported: bool = False

    @property
    def metrics(self) -> dict[str, object]:
        """The store's part of a job's metrics."""
        if self.is_reported:
            return {"upload": {"bytes": self.size_bytes, "sha256": self.sha256}}
        if self.bucket is None or self.file_name is None:
            return {}
        return {"b2_bucket": self.bucket, "b2_file_name": self.file_name}


class OutputStore(Protocol):
    """Stores finished videos."""

    @property
    def name(self) -> str:
        """`b2`, `local` or `put`, for logs and /health."""
        ...

    def check(self) -> None:
        """Check at the start whether outputs can be stored.

        Raises:
            UploadFailed: they cannot. The message names the setting to check.
        """
        ...

    def place(self, job_id: str) -> Place:
        """Return where the video of `job_id` will be, without a request."""
        ...

    def has(self, job_id: str) -> bool:
        """Return whether the video of `job_id` exists; True if that cannot be checked."""
        ...

    def put(self, job_id: str, video: Path, sidecar: bytes) -> StoredOutput:
        """Store a copy of `video`, and its sidecar.

        Raises:
            UploadFailed: every try failed. The job may be retried.
        """
        ...


@dataclass(frozen=True, slots=True)
class SidecarFacts:
    """The fields of the sidecar (docs/protocol.md §6), followed by those that this project adds."""

    musetalk_job_id: str
    queue_job_id: str | None
    gpu_class: str | None
    aspect_ratio: str | None
    resolution: str | None
    generation_time_sec: float | None
    script_wall_time_sec: float | None
    peak_vram_mib: float | None
    peak_ram_kb: int | None
    b2_bucket: str | None
    b2_file_name: str | None
    engine: str
    model_version: str | None
    source_sha256: str
    audio_sha256: str
    stage_times: dict[str, float] = field(default_factory=dict)
    receipt: dict[str, Any] = field(default_factory=dict)


def sidecar(facts: SidecarFacts, created: datetime | None = None) -> bytes:
    """Return the metadata file next to a video: JSON in UTF-8, with one key a line.

    `created` becomes `create_time_utc`, to the second. It needs a time zone, and defaults to now.
    """
    moment = (created or datetime.now(UTC)).astimezone(UTC)
    document = {**asdict(facts), "create_time_utc": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def peak_ram_kb() -> int:
    """Return the peak memory of this process in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass(frozen=True, slots=True)
class FileDigests:
    """The size and the hex digests of a file."""

    size_bytes: int
    sha1: str
    sha256: str


def file_digests(path: Path) -> FileDigests:
    """Read a file once, in blocks."""
    sha1, sha256 = hashlib.sha1(usedforsecurity=False), hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as reader:
        while block := reader.read(READ_BLOCK_BYTES):
            size_bytes += len(block)
            sha1.update(block)
            sha256.update(block)
    return FileDigests(size_bytes, sha1.hexdigest(), sha256.hexdigest())
