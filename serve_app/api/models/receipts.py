"""What a job used: the receipt, and the numbers of docs/protocol.md under `metrics`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import shows

RECEIPT: JsonDict = {
    "frames": 177,
    "frames_by_gpu_class": {"RTX-4090": 177},
    "pools": [
        {
            "pool": "ada",
            "frames": 177,
            "work_s": 1.292,
            "idle_s": 0.239,
            "lost_s": 0.0,
            "encode_s": 0.41,
            "usd": 0.0002,
        }
    ],
    "stage_frames": {
        "prepare": 177,
        "encode": 177,
        "listen": 177,
        "generate": 177,
        "compose": 177,
    },
    "faces": 177,
    "stage_s": {"download": 0.3, "validation": 1.3, "inference": 1.292, "upload": 0.4},
    "waiting_s": {"place": 0.0, "queue": 0.0, "pool": 0.005, "stages": 0.5},
    "wall_s": 4.927,
    "finished_s": 7.08,
    "paid_s": 1.531,
    "model_share": 0.8439,
    "usd": 0.0002,
    "usd_per_finished_minute": 0.0017,
    "avatar_blocks": {"made": 4, "cached": 0},
    "retries": {"segments": 0, "frames": 0},
}
METRICS: JsonDict = {
    "GENERATION_TIME_SEC": 1.292,
    "SCRIPT_WALL_TIME_SEC": 4.927,
    "PEAK_VRAM_MIB": 7064.7,
    "PEAK_RAM_KB": 599336,
    "gpu_class": "RTX-4090",
    "engine": "musetalk",
    "model_version": "v15",
    "landmarks": "mmpose",
    "stage_times": {"download": 0.3, "validation": 1.3, "inference": 1.292, "upload": 0.4},
    "total_time": 4.927,
    "receipt": RECEIPT,
}


class PoolReceipt(BaseModel):
    """What the replicas of one pool did for a job."""

    pool: str | None
    frames: int = Field(description="Output frames that were drawn here.")
    work_s: float = Field(description="Of calls whose results are used.")
    idle_s: float = Field(description="Between two calls, the second of which was the job's.")
    lost_s: float = Field(description="Of tries that failed.")
    encode_s: float = Field(0.0, description="Of `work_s`, what made blocks of the avatar.")
    usd: float | None = Field(description="Without prices, null.")


class AvatarBlocks(BaseModel):
    """Blocks of the avatar that were made, and those that were kept from an earlier job."""

    made: int
    cached: int


class Retries(BaseModel):
    """Tries at segments that failed, and their frames."""

    segments: int
    frames: int


class Receipt(BaseModel):
    """What a job used and cost. docs/scaling.md explains each number; `_s` are seconds."""

    model_config = ConfigDict(json_schema_extra=shows(RECEIPT))

    frames: int = Field(description="Output frames that were drawn.")
    frames_by_gpu_class: dict[str, int]
    pools: list[PoolReceipt]
    stage_frames: dict[str, int] = Field({}, description="That a stage worked on, by stage.")
    faces: int = Field(0, description="That were drawn.")
    stage_s: dict[str, float] = Field(description="Of work, by stage.")
    waiting_s: dict[str, float] = Field(description="By what was waited for.")
    wall_s: float = Field(description="Of the last attempt, without its wait for a place.")
    finished_s: float = Field(description="The length of the video; 0 if there is none.")
    paid_s: float = Field(description="For which the job occupied replicas.")
    model_share: float | None = Field(description="The part of `paid_s` that made the video.")
    usd: float | None = Field(description="Without prices, null.")
    usd_per_finished_minute: float | None
    avatar_blocks: AvatarBlocks
    retries: Retries


class Metrics(BaseModel):
    """The numbers of a job that has succeeded. More may be added; an avatar's job has a few."""

    model_config = ConfigDict(extra="allow", json_schema_extra=shows(METRICS))

    GENERATION_TIME_SEC: float | None = None
    SCRIPT_WALL_TIME_SEC: float | None = None
    PEAK_VRAM_MIB: float | None = None
    PEAK_RAM_KB: float | None = None
    gpu_class: str | None = None
    engine: str | None = None
    model_version: str | None = None
    landmarks: str | None = None
    stage_times: dict[str, float] | None = None
    total_time: float | None = Field(None, description="Seconds.")
    receipt: Receipt | None = None
    avatar_id: str | None = Field(None, description="Of a job that has prepared an avatar.")
    b2_bucket: str | None = Field(None, description="If the output went to B2.")
    b2_file_name: str | None = Field(None, description="If the output went to B2.")
