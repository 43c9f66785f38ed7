"""Where finished videos go: the interface of the stores, the names of outputs, the sidecar.

The stores are in b2.py (Backblaze B2), local_store.py and put_store.py (a signed address). Every
`put` is synchronous (call it in a thread), ends by itself, and may be repeated: the key follows
from the job id, the video is complete before its sidecar appears, and an interrupted `put` leaves
nothing that looks like a result.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

VIDEO_SUFFIX = ".mp4"
SIDECAR_SUFFIX = ".json"

_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_UNSAFE_RUN = re.compile(r"[^A-Za-z0-9_-]+")
_SLUG_CHARS = 64
_READ_BLOCK_BYTES = 1 << 20


def object_name(job_id: str) -> str:
    """Return the name, without suffix, under which the output of `job_id` is stored.

    Job ids are the caller's and may hold anything. Plain ones stay as they are. Of the others a
    readable rest is kept and a digest added behind `~`, which no plain id holds, so that different
    ids never share a name. No name holds a separator, starts with a dot or is longer than 128.
    """
    if _PLAIN_ID.fullmatch(job_id):
        return job_id
    slug = _UNSAFE_RUN.sub("-", job_id)[:_SLUG_CHARS].strip("-_")
    digest = hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{slug or 'job'}~{digest}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job's video will be, known before it is stored (the sidecar names it)."""

    bucket: str | None
    file_name: str | None


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """A stored video. `bucket` and `file_name` are set where the output went to B2.

    `url` is the output's address; of a local file it is the path under this worker (`/files/…`).
    """

    url: str
    bucket: str | None
    file_name: str | None
    size_bytes: int
    sha256: str

    @property
    def metrics(self) -> dict[str, str]:
        """What docs/protocol.md §1 adds to a job's metrics; empty unless the output went to B2."""
        if self.bucket is None or self.file_name is None:
            return {}
        return {"b2_bucket": self.bucket, "b2_file_name": self.file_name}


class OutputStore(Protocol):
    """Keeps finished videos."""

    @property
    def name(self) -> str:
        """`b2`, `local` or `put`: for logs and /health."""
        ...

    def check(self) -> None:
        """Find out at start whether outputs can be stored.

        Raises:
            UploadFailed: with a sentence that says which setting to look at.
        """
        ...

    def place(self, job_id: str) -> Place:
        """Say where the video of `job_id` will be, without asking anybody."""
        ...

    def has(self, job_id: str) -> bool:
        """Tell whether the video of `job_id` can be found; True where nobody can tell."""
        ...

    def put(self, job_id: str, video: Path, sidecar: bytes) -> StoredOutput:
        """Store `video` and its sidecar; the file itself stays where it is.

        Raises:
            UploadFailed: every try failed; retryable.
        """
        ...


@dataclass(frozen=True, slots=True)
class SidecarFacts:
    """docs/protocol.md §6, and after it what this project adds. Names are the JSON's."""

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


def sidecar(facts: SidecarFacts, created: datetime | None = None) -> bytes:
    """Return the metadata file that lies beside a video: JSON, UTF-8, one key a line.

    `created` (aware; now, if left out) becomes `create_time_utc`, to the second.
    """
    moment = (created or datetime.now(UTC)).astimezone(UTC)
    document = {**asdict(facts), "create_time_utc": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def peak_ram_kb() -> int:
    """Return the most memory that this process has held; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass(frozen=True, slots=True)
class Digests:
    """Size and hex digests of a file."""

    size_bytes: int
    sha1: str
    sha256: str


def file_digests(path: Path) -> Digests:
    """Read a file once, in blocks."""
    sha1, sha256 = hashlib.sha1(usedforsecurity=False), hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as reader:
        while block := reader.read(_READ_BLOCK_BYTES):
            size_bytes += len(block)
            sha1.update(block)
            sha256.update(block)
    return Digests(size_bytes, sha1.hexdigest(), sha256.hexdigest())
