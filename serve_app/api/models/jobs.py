"""Jobs, as `serve_app.api.answers` writes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import Instant, JobModels, JobStatus, shows
from serve_app.api.models.problems import Problem
from serve_app.api.models.receipts import METRICS, Metrics, Receipt
from serve_app.contract.outcomes import Phase
from serve_app.contract.requests import Params

_URL = "https://videos.example/files/job-1.mp4?expires=1796270400&signature=mMj6L-Nm1IlN2r793zya"
QUEUED: JsonDict = {
    "id": "job-1",
    "status": "queued",
    "output_url": None,
    "stream_url": None,
    "metrics": None,
    "error": None,
    "failure": None,
    "warnings": [],
    "input": {
        "video_url": "https://media.example/face.mp4",
        "audio_url": "https://media.example/speech.wav",
        "aspect_ratio": None,
        "resolution": "512x512",
        "params": {"fit": "crop"},
    },
    "progress": {
        "phase": "queued",
        "fraction": 0.0,
        "frames_done": 0,
        "frames_total": 0,
        "stage_seconds": {},
        "eta_s": None,
        "queue_position": 1,
    },
    "attempt": 0,
    "metadata": {"customer": 17},
    "created_at": "2026-11-26T03:49:38.307+00:00",
    "updated_at": "2026-11-26T03:49:38.307+00:00",
}
_SUCCEEDED: JsonDict = {
    **QUEUED,
    "status": "succeeded",
    "output_url": _URL,
    "metrics": METRICS,
    "progress": {
        "phase": "completed",
        "fraction": 1.0,
        "frames_done": 177,
        "frames_total": 177,
        "stage_seconds": METRICS["stage_times"],
        "eta_s": None,
        "queue_position": None,
    },
    "attempt": 1,
    "updated_at": "2026-11-26T03:49:43.391+00:00",
}


class JobFailure(BaseModel):
    """Why a job has failed or was cancelled. Its `error` is the sentence for people."""

    error_type: str = Field(
        description="`media_error`: an input is at fault. `processing_error`: the worker is."
    )
    code: str = Field(description="Stable. docs/errors.md lists all codes; more may be added.")
    input: str | None = Field(description="`video` or `audio` if that file is at fault.")
    stage: str
    details: dict[str, Any]
    retryable: bool = Field(description="Whether the same job may succeed if it is sent again.")
    receipt: Receipt | None = Field(description="Of what was used until then.")
    hint: str = Field(description="What to do about it.")


class JobInput(BaseModel):
    """What was asked for. Addresses are shown without what may be secret in them."""

    video_url: str
    audio_url: str
    aspect_ratio: str | None
    resolution: str | None
    params: Params


class JobProgress(BaseModel):
    """How far a job is. The counts are those of the attempt that runs."""

    phase: Phase
    fraction: float = Field(ge=0, le=1, description="Of the whole job. It never falls.")
    frames_done: int = Field(description="Frames that are drawn.")
    frames_total: int = Field(description="0 until the files have been examined.")
    stage_seconds: dict[str, float] = Field(description="Seconds of work, by stage.")
    eta_s: float | None = Field(description="The remaining seconds, once they can be estimated.")
    queue_position: int | None = Field(description="1 for the next job; null if it does not wait.")


class Job(BaseModel):
    """A job. `output_url` is set once it has succeeded, `failure` once it has failed."""

    model_config = ConfigDict(json_schema_extra=shows(QUEUED, _SUCCEEDED))

    id: str
    status: JobStatus
    output_url: str | None = Field(description="Of the video. Each answer has a fresh link.")
    stream_url: str | None = Field(
        description="An HLS playlist of what has been made so far. Null if there is no stream."
    )
    metrics: Metrics | None
    error: str | None = Field(description="One sentence on why it failed.")
    failure: JobFailure | None
    warnings: list[str] = Field(description="Sentences on what was not done as requested.")
    input: JobInput
    progress: JobProgress
    attempt: int = Field(description="How often the job was started.")
    metadata: dict[str, Any] | None = Field(description="What was sent with the job.")
    created_at: Instant
    updated_at: Instant


class JobPage(BaseModel):
    """Some jobs, the newest first."""

    model_config = ConfigDict(
        json_schema_extra=shows({"jobs": [_SUCCEEDED], "next_cursor": "1795664978.307:job-1"})
    )

    jobs: list[Job]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last one.")


class GenerateResult(BaseModel):
    """A finished video."""

    model_config = ConfigDict(
        json_schema_extra=shows(
            {
                "status": "success",
                "output_url": _URL,
                "musetalk_job_id": "job-1",
                "metrics": METRICS,
                "error": None,
                "warnings": [],
            }
        )
    )

    status: Literal["success"]
    output_url: str
    musetalk_job_id: str
    metrics: Metrics
    error: None
    warnings: list[str] = Field(description="Sentences on what was not done as requested.")
    b2_bucket: str = Field("", description="If the output went to B2; also in `metrics`.")
    b2_file_name: str = Field("", description="If the output went to B2; also in `metrics`.")


JOB_MODELS = JobModels(Job, JobPage, Problem)
