"""The answers of the API as values. Fields that this client does not have yet are in `raw`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from lipsync_client.errors import BadAnswer

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled", "dead"]
Body = Mapping[str, Any]
T = TypeVar("T")


def known(kind: type[T], body: Any, **made: Any) -> T:
    """Return a value of the fields that `kind` has, without those that it lacks. `made`: fields
    that are not simply copied.

    Raises:
        BadAnswer: a field is missing that every answer has.
    """
    if not isinstance(body, Mapping):
        raise BadAnswer(f"The answer is no {kind.__name__.lower()}: it is not a JSON object.")
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in body.items() if name in names} | made
    if "raw" in names:
        given["raw"] = body
    try:
        return kind(**given)
    except TypeError as exc:
        raise BadAnswer(f"The answer is no {kind.__name__.lower()}: {exc}.") from None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. `fraction`: 0 to 1. `eta_s`: seconds that are left, if that is known."""

    phase: str
    fraction: float
    frames_done: int = 0
    frames_total: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    eta_s: float | None = None
    queue_position: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended without a result. `input`: the one at fault, `video` or `audio`."""

    code: str = "unknown"
    error_type: str = "unknown_error"
    stage: str = "unknown"
    hint: str | None = None
    input: str | None = None
    retryable: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    receipt: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One job. `error`: a sentence, if it failed. `metrics`: seconds, GPU class and the receipt."""

    id: str
    status: JobStatus
    output_url: str | None = None
    error: str | None = None
    failure: Failure | None = None
    progress: Progress | None = None
    metrics: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    input: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None
    attempt: int = 0
    created_at: str | None = None
    updated_at: str | None = None
    raw: Body = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.status not in ("queued", "running")

    @classmethod
    def read(cls, body: Any) -> Job:
        """Return the job that an answer or an event contains."""
        if not isinstance(body, Mapping):
            raise BadAnswer("The answer is no job: it is not a JSON object.")
        failure, progress = body.get("failure"), body.get("progress")
        # An orchestrator's own jobs show their progress as a number, with the phase beside it.
        if not isinstance(progress, Mapping) and progress is not None:
            progress = {"fraction": progress, "phase": body.get("phase") or body.get("status")}
        return known(
            cls,
            body,
            failure=None if failure is None else known(Failure, failure),
            progress=None if progress is None else known(Progress, progress),
            warnings=tuple(body.get("warnings") or ()),
        )


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that the server keeps until `expires_at`. `url` stands for it in jobs.

    `kind`: video, audio or picture.
    """

    id: str
    url: str
    kind: str | None = None
    bytes: int | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    expires_at: str | None = None
    raw: Body = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job will take: the size of its result, seconds of work, dollars if prices are
    configured, and seconds of waiting before. `basis`: what it is learnt from.
    """

    frames: int
    duration_s: float
    width: int
    height: int
    fps: float
    seconds: float
    usd: float | None
    queue_s: float
    basis: Mapping[str, Any]
    raw: Body = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One job of a batch."""

    id: str
    status: JobStatus


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that were submitted together. `counts`: jobs by status."""

    id: str
    status: str
    counts: Mapping[str, int]
    jobs: tuple[BatchJob, ...]
    raw: Body = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_ended(self) -> bool:
        """Whether every job has ended."""
        return not self.counts.get("queued") and not self.counts.get("running")

    @classmethod
    def read(cls, body: Any) -> Batch:
        """Return the batch that an answer contains."""
        jobs = body.get("jobs") if isinstance(body, Mapping) else None
        return known(cls, body, jobs=tuple(known(BatchJob, job) for job in jobs or ()))


@dataclass(frozen=True, slots=True)
class Avatar:
    """A prepared avatar. `has_video`: whether jobs can name it in place of a video."""

    id: str
    has_video: bool
    frames: int | None = None
    prepared_frames: int | None = None
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    size_bytes: int | None = None
    last_used_at: str | None = None
    raw: Body = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Preview:
    """One finished frame. `face_box`: x0, y0, x1, y1 in pixels of the picture. `faces`: such a box
    for each face of the source frame that the option `face` can choose, in pixels of the video as
    it is displayed, the largest first.
    """

    png: bytes = field(repr=False)
    face_box: tuple[int, int, int, int]
    source_frame: int
    faces: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """How much of a file has been sent or received, in bytes. `total`: None if it is not known."""

    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A verified webhook. `type`: avatar.job.succeeded, avatar.job.failed, …"""

    type: str
    job: Job
    raw: Body = field(default_factory=dict, repr=False, compare=False)
