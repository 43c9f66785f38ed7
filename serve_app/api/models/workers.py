"""What a worker answers about itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.job_api.described import shows
from serve_app.api.models.jobs import JobProgress

_STATUS = "`ok`: it takes jobs. `stopping`: it begins no more."


class Readiness(BaseModel):
    """Whether a job can run."""

    model_config = ConfigDict(json_schema_extra=shows({"status": "ok"}))

    status: Literal["ok", "starting", "stopping"] = Field(description=_STATUS)


class PoolState(BaseModel):
    """The replicas of one pool."""

    name: str
    wanted: int
    running: int
    starting: int
    frames_per_s: float = Field(description="Of one replica, as measured; at first as configured.")
    frames_in_flight: int
    load_s: float = Field(description="Seconds in which a replica starts.")
    reason: str = Field(description="Why the pool cannot run; else empty.")


class Health(BaseModel):
    """Whether a job can run, and what is running. While it starts, the status may stand alone."""

    model_config = ConfigDict(
        json_schema_extra=shows(
            {
                "status": "ok",
                "service": "lipsync-serve",
                "version": "0.1.0",
                "engine": "musetalk",
                "model_version": "v15",
                "landmarks": "mmpose",
                "device": "cuda:0",
                "gpu_class": "RTX-4090",
                "batch_size": 16,
                "frames_waiting": 0,
                "pools": [],
            }
        )
    )

    status: Literal["ok", "starting", "stopping"] = Field(description=_STATUS)
    service: str = ""
    version: str = ""
    engine: str = ""
    model_version: str = ""
    landmarks: str = Field("", description="The detector of faces.")
    device: str = ""
    gpu_class: str = ""
    batch_size: int = Field(1, description="Frames in one pass of the networks.")
    frames_waiting: int = Field(0, description="Frames of all jobs that are not drawn yet.")
    pools: list[PoolState] = Field([], description="Empty where replicas are not counted.")
    user_config_fault: str = Field("", description="Why the last `user_config` was refused.")


class Ping(BaseModel):
    """Version and load, for the fleet's own checks."""

    model_config = ConfigDict(
        json_schema_extra=shows(
            {
                "status": "ok",
                "version": "0.1.0",
                "gpu": True,
                "activeJobs": 1,
                "maxConcurrentJobs": 2,
                "buildCommit": "unknown",
                "buildTime": "unknown",
                "imageDigest": "unknown",
            }
        )
    )

    status: Literal["ok"]
    version: str
    gpu: bool
    activeJobs: int
    maxConcurrentJobs: int
    buildCommit: str
    buildTime: str
    imageDigest: str


class Preflight(BaseModel):
    """Every runtime dependency and model file: `ok`, or the error that using it gave."""

    model_config = ConfigDict(
        json_schema_extra=shows({"status": "ok", "checks": {"finisher/av": "ok"}})
    )

    status: Literal["ok", "failed"]
    checks: dict[str, str]


class RunningJob(BaseModel):
    """A job that a drain waits for."""

    id: str
    progress: JobProgress


class Drain(BaseModel):
    """How far a drain is."""

    model_config = ConfigDict(
        json_schema_extra=shows({"status": "drained", "running": [], "queued": 3})
    )

    status: Literal["draining", "drained"] = Field(description="`drained`: no job runs any more.")
    running: list[RunningJob]
    queued: int = Field(description="Jobs that stay in the queue for the next start.")
