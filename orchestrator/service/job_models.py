"""The answers of the job API as models, for its document; job_messages.py writes the answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import AnyProblem, Instant, JobModels, JobStatus, shows
from orchestrator.store.states import JobState

_QUEUED: JsonDict = {
    "id": "job-1",
    "status": "queued",
    "state": "queued",
    "output_url": None,
    "metrics": None,
    "receipt": None,
    "error": None,
    "failure": None,
    "input": {
        "video_url": "https://media.example/face.mp4",
        "avatar_id": None,
        "audio_url": "https://media.example/speech.wav",
        "aspect_ratio": None,
        "resolution": "512x512",
        "params": {"fit": "crop"},
    },
    "progress": {"phase": "queued", "fraction": 0.0, "frames_done": 0, "frames_total": 0},
    "attempt": 0,
    "failures": 0,
    "interruptions": 0,
    "priority": 5,
    "deadline": None,
    "requires": {"min_vram_gb": 0.0, "architectures": []},
    "metadata": {"customer": 17},
    "created_at": "2026-11-26T03:49:38.307+00:00",
    "updated_at": "2026-11-26T03:49:38.307+00:00",
}
_PROBLEM: JsonDict = {
    "status": "failed",
    "error_type": "request_error",
    "error_message": "There is no such job.",
    "code": "job_not_found",
    "hint": "Check the id; old jobs are deleted, so the job may be sent again.",
    "input": None,
    "stage": "unknown",
    "details": {},
    "retryable": False,
    "stage_times": {},
    "detail": "There is no such job.",
}


class Problem(AnyProblem):
    """An error. Programs read `code` and `retryable`, people `error_message` and `hint`."""

    model_config = ConfigDict(json_schema_extra=shows(_PROBLEM))

    detail: str = Field(description="The same as `error_message`, for older workers.")


class JobInput(BaseModel):
    """What was asked for. Addresses are shown without their queries, which may be secret."""

    video_url: str | None
    avatar_id: str | None
    audio_url: str
    aspect_ratio: str | None
    resolution: str | None
    params: dict[str, Any]


class JobProgress(BaseModel):
    """How far a job is, as its worker last reported."""

    phase: str
    fraction: float = Field(ge=0, le=1)
    frames_done: int
    frames_total: int


class Requires(BaseModel):
    """The cards that a job may run on."""

    min_vram_gb: float
    architectures: list[str] = Field(description="Empty: all of them.")


class Job(BaseModel):
    """A job. `output_url` is set once it has succeeded, `failure` once it has failed."""

    model_config = ConfigDict(json_schema_extra=shows(_QUEUED))

    id: str
    status: JobStatus
    state: JobState = Field(description="As `status`, and `dead` after too many failures.")
    output_url: str | None
    metrics: dict[str, Any] | None = Field(description="As the worker reported them.")
    receipt: dict[str, Any] | None = Field(description="As the worker reported it.")
    error: str | None = Field(description="One sentence on why it failed.")
    failure: dict[str, Any] | None
    input: JobInput
    progress: JobProgress
    attempt: int
    failures: int
    interruptions: int
    priority: int
    deadline: Instant | None
    requires: Requires
    metadata: dict[str, Any] | None = Field(description="What was sent with the job.")
    created_at: Instant
    updated_at: Instant


class JobPage(BaseModel):
    """Some jobs, the newest first."""

    model_config = ConfigDict(json_schema_extra=shows({"jobs": [_QUEUED], "next_cursor": None}))

    jobs: list[Job]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last one.")


JOB_MODELS = JobModels(Job, JobPage, Problem)
