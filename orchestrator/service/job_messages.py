"""What clients send and are sent (docs/protocol.md §3). Requests are read strictly."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    model_validator,
)

from orchestrator.job_api.instants import instant
from orchestrator.net.shown import with_urls
from orchestrator.routing import Requirements
from orchestrator.service.texts import Id, JsonObject, Text
from orchestrator.store.states import status_of
from orchestrator.store.values import (
    KEPT_AVATAR,
    Attempt,
    Event,
    Job,
    NewJob,
    Worker,
    without_query,
)

MAX_METADATA_ENTRIES, MAX_OBJECT_BYTES = 64, 16 * 1024


def _is_address(url: str) -> str:
    try:
        scheme, host = url.partition("://")[0].lower(), without_query(url).partition("://")[2]
    except ValueError as error:
        raise ValueError("this is not an address") from error
    if scheme not in ("http", "https") or not host.strip("/"):
        raise ValueError("use an http:// or https:// address")
    if any(character.isspace() for character in url):
        raise ValueError("an address has no spaces")
    return url


def _is_small(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_OBJECT_BYTES:
        raise ValueError(f"at most {MAX_OBJECT_BYTES} bytes are kept, as JSON and in all")
    return value


Address = Annotated[Text, Field(min_length=1, max_length=8192), AfterValidator(_is_address)]
Size = Annotated[Text, Field(min_length=1, max_length=32)]
MetadataValue = Annotated[Text, Field(max_length=4096)] | int | FiniteFloat | bool | None
Metadata = Annotated[
    dict[Text, MetadataValue],
    Field(max_length=MAX_METADATA_ENTRIES),
    AfterValidator(_is_small),
]
Architecture = Literal["turing", "ampere", "ada", "hopper", "blackwell"]


class RequiresBody(BaseModel):
    """The cards that a job may run on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_vram_gb: float = Field(0.0, ge=0, le=10_000)
    architectures: frozenset[Architecture] = frozenset()


AvatarId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class JobCreate(BaseModel):
    """`POST /v1/avatar/jobs`. A field that is not here is refused: it would be dropped silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video_url: Address | None = Field(None, description="Required without avatar_id.", repr=False)
    avatar_id: AvatarId | None = Field(
        None, description="A prepared avatar, in place of video_url, for workers that have it."
    )
    audio_url: Address = Field(repr=False)
    aspect_ratio: Size | None = None
    resolution: Size | None = None
    params: Annotated[JsonObject, AfterValidator(_is_small)] | None = Field(
        None, description="Handed to the worker as they are; docs/api.md lists them."
    )
    musetalk_job_id: Id | None = Field(None, description="Yours, or one is made.")
    metadata: Metadata | None = Field(
        None, description="Given back with the job; at most 64 entries and 16 KiB."
    )
    priority: int = Field(5, ge=0, le=9, description="9 goes first.")
    requires: RequiresBody = Field(
        RequiresBody(), description="The cards that it may run on; all of them by default."
    )
    deadline: AwareDatetime | None = Field(
        None, description="When the result is needed, with its time zone. The worker is told."
    )

    webhook_url: Address | None = Field(
        None, description="It is sent a signed POST when the job has ended.", repr=False
    )

    @model_validator(mode="after")
    def _has_one_video(self) -> Self:
        if (self.video_url is None) == (self.avatar_id is None):
            raise ValueError("send either video_url or avatar_id")
        return self

    def new_job(self, job_id: str, client: str, idempotency_key: str | None) -> NewJob:
        """Return it for the store."""
        return NewJob(
            id=job_id,
            client=client,
            video_url=self.video_url or f"{KEPT_AVATAR}{self.avatar_id}",
            audio_url=self.audio_url,
            aspect_ratio=self.aspect_ratio,
            resolution=self.resolution,
            params=self.params,
            metadata=self.metadata,
            priority=self.priority,
            deadline=None if self.deadline is None else self.deadline.timestamp(),
            requires=Requirements(self.requires.min_vram_gb, self.requires.architectures),
            idempotency_key=idempotency_key,
            webhook_url=self.webhook_url,
        )


def job_body(job: Job) -> dict[str, Any]:
    """Return docs/protocol.md §3's shape, and the progress.

    `status` has the values that clients know; a job that is dead has failed, and its `state` says
    so.
    """
    counts = job.counts or {}
    return {
        "id": job.id,
        "status": status_of(job.state),
        "state": job.state,
        "output_url": job.output_url,
        "metrics": job.metrics,
        "receipt": job.receipt,
        "error": job.error,
        "failure": job.failure,
        "input": {
            # Signed query strings never leave this service, but to the worker.
            "video_url": None if job.avatar_id else without_query(job.video_url),
            "avatar_id": job.avatar_id,
            "audio_url": without_query(job.audio_url),
            "aspect_ratio": job.aspect_ratio,
            "resolution": job.resolution,
            "params": with_urls(job.params or {}, without_query),
        },
        "progress": {
            "phase": job.phase,
            "fraction": round(job.progress, 4),
            "frames_done": counts.get("frames_done", 0),
            "frames_total": counts.get("frames_total", 0),
        },
        "attempt": job.attempt,
        "failures": job.failures,
        "interruptions": job.interruptions,
        "priority": job.priority,
        "deadline": instant(job.deadline),
        "requires": {
            "min_vram_gb": job.requires.min_vram_gb,
            "architectures": sorted(job.requires.architectures),
        },
        "metadata": job.metadata,
        "created_at": instant(job.created_at),
        "updated_at": instant(job.updated_at),
    }


def attempt_body(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt for the operator."""
    return {
        "attempt": attempt.number,
        "run": attempt.run,
        "worker_id": attempt.worker_id,
        "worker_type": attempt.worker_type,
        "gpu_class": attempt.gpu_class,
        "started_at": instant(attempt.started_at),
        "ended_at": instant(attempt.ended_at),
        "end": attempt.ending or "running",
        "phase": attempt.phase,
        "error": attempt.error,
        "failure": attempt.failure,
    }


def event_body(event: Event, *, is_operator: bool) -> dict[str, Any]:
    """Return a change of a job. Which worker has it is the operator's affair."""
    facts = dict(event.facts or {})
    if not is_operator:
        facts.pop("worker_id", None)
    return {
        "kind": event.kind,
        "attempt": event.attempt,
        "happened_at": instant(event.happened_at),
        **facts,
    }


def worker_body(worker: Worker) -> dict[str, Any]:
    """Return a worker for the operator."""
    return {
        "id": worker.id,
        "worker_type": worker.worker_type,
        "provider": worker.provider,
        "gpu_class": worker.gpu_class,
        "capacity": worker.capacity,
        "status": worker.status if worker.is_online else "offline",
        "jobs": worker.held,
        "error": worker.error,
        "drain": worker.is_drained,
        "system_info": worker.system_info,
        "first_seen_at": instant(worker.first_seen_at),
        "seen_at": instant(worker.seen_at),
        "left_because": worker.left_because,
    }
