"""Uploads, as `serve_app.api.upload_desk` writes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from orchestrator.job_api.described import Instant, shows

_UPLOAD: JsonDict = {
    "id": "5f0c6d1f8d6e3a0d4a4c0f6f1c7e9b21",
    "url": "upload://5f0c6d1f8d6e3a0d4a4c0f6f1c7e9b21",
    "name": "face.mp4",
    "status": "ready",
    "bytes": 148213,
    "length": 148213,
    "kind": "video",
    "duration_s": 4.0,
    "width": 1280,
    "height": 720,
    "fps": 25.0,
    "created_at": "2026-11-26T03:49:38.307+00:00",
    "expires_at": "2026-11-27T03:49:38.307+00:00",
}


class Upload(BaseModel):
    """A file that was sent. What is not known yet, or does not apply, is null."""

    model_config = ConfigDict(json_schema_extra=shows(_UPLOAD))

    id: str
    url: str = Field(description="Names the file wherever an address of media is expected.")
    name: str = Field(description="Of the file, as it was sent; it may be empty.")
    status: Literal["unfinished", "ready"]
    bytes: int = Field(description="That have arrived.")
    length: int | None = Field(description="Bytes of the whole file.")
    kind: Literal["video", "audio", "picture"] | None
    duration_s: float | None
    width: int | None
    height: int | None
    fps: float | None
    created_at: Instant
    expires_at: Instant


class UploadList(BaseModel):
    """The uploads of one key, the newest first."""

    model_config = ConfigDict(json_schema_extra=shows({"uploads": [_UPLOAD]}))

    uploads: list[Upload]
