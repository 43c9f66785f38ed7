"""Kept avatars, as routers/avatars.py writes them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import Instant, shows

_AVATAR: JsonDict = {
    "id": "5d6b104dc0294357b1798b662d0a76b2",
    "video_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "engine": "musetalk",
    "model_version": "v15",
    "landmarks": "mmpose",
    "width": 512,
    "height": 512,
    "fps": 25.0,
    "frames": 50,
    "prepared_frames": 50,
    "duration_s": 2.0,
    "size_bytes": 1048576,
    "has_video": True,
    "last_used_at": "2026-11-26T03:49:38.307+00:00",
}


class Avatar(BaseModel):
    """What was prepared of a video."""

    model_config = ConfigDict(json_schema_extra=shows(_AVATAR))

    id: str = Field(description="`avatar_id` of jobs.")
    video_sha256: str
    engine: str
    model_version: str
    landmarks: str
    width: int
    height: int
    fps: float
    frames: int = Field(description="Of the whole video.")
    prepared_frames: int
    duration_s: float
    size_bytes: int
    has_video: bool = Field(description="Whether jobs may name it in place of video_url.")
    last_used_at: Instant


class AvatarList(BaseModel):
    """The avatars that are kept, the most recently used first."""

    model_config = ConfigDict(json_schema_extra=shows({"avatars": [_AVATAR]}))

    avatars: list[Avatar]
