"""What crosses the HTTP boundary, and the values the job driver, the poller and the API share.

Pydantic at the edge (unknown fields of `params` are refused), frozen dataclasses inside.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from musetalk_pipeline.options import (
    Edges,
    EncodeOptions,
    Faceless,
    FaceOptions,
    Fit,
    FrameOptions,
    FrameRate,
    JobOptions,
    MaskOptions,
    ParsingMode,
    Preset,
    SpeechOptions,
    WindowPlacement,
    WindowSpan,
)

MAX_ID_CHARS = 256
MAX_URL_CHARS = 8192
MAX_METADATA_ENTRIES, MAX_METADATA_BYTES = 64, 16 * 1024
# The bound also makes pydantic look at the characters: half a surrogate pair cannot be sent back.
MetadataText = Annotated[str, Field(max_length=4096)]


class Params(BaseModel):
    """Per-request options; everything left out takes the deployment's default (`defaults:` in
    serve_config.yaml).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: Fit | None = Field(
        None, description="Black bars, bars of the `blur`red picture, or `crop` around the face."
    )
    fps: float | None = Field(
        None, ge=1, le=120, description="Plays the source's frames at it; none: as the source."
    )
    crf: int | None = Field(None, ge=0, le=40, description="H.264 quality, lower is better.")
    preset: Preset | None = Field(None, description="libx264 preset.")
    parsing_mode: ParsingMode | None = Field(None, description="Which pixels are replaced.")
    extra_margin: int | None = Field(None, ge=0, le=200, description="Chin margin in px (v1.5).")
    bbox_shift: int | None = Field(None, ge=-50, le=50, description="Shifts the box centre (v1).")
    left_cheek_width: int | None = Field(None, ge=0, le=256)
    right_cheek_width: int | None = Field(None, ge=0, le=256)
    blur: float | None = Field(None, ge=0.0, le=0.5, description="Mask blur / crop width.")
    audio_padding_left: int | None = Field(None, ge=0, le=10)
    audio_padding_right: int | None = Field(None, ge=0, le=10)
    window_placement: WindowPlacement | None = Field(
        None, description="When a window begins: fixed as trained; reference: late below 25 fps."
    )
    window_span: WindowSpan | None = Field(
        None, description="A window of sound is 200 ms long, or five video frames."
    )
    chunk_overlap_s: float | None = Field(
        None, ge=0, le=10, description="Overlap of the 30 s that Whisper hears at a time."
    )
    frame_rate: FrameRate | None = Field(
        None, description="In the sound: exact, or cut to a whole number as the reference does."
    )
    rest_in_silence: bool | None = Field(None, description="Show the source mouth in silence.")
    faceless: Faceless | None = Field(
        None, description="Frames without a face pass as they are, or end the job with `no_face`."
    )
    edges: Edges | None = Field(
        None, description="Boxes over the frame's edge are clipped, or stretched as the reference."
    )
    box_smoothing: int | None = Field(None, ge=0, le=12, description="Neighbours averaged.")


class JobRequest(BaseModel):
    """One job, as `POST /generate` and the orchestrator's claims send it. Fields unknown to us are
    ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    musetalk_job_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    video_url: Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS, repr=False)]
    audio_url: Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS, repr=False)]
    aspect_ratio: str | None = Field(None, max_length=32, description="`9:16`, `source`, …")
    resolution: str | None = Field(None, max_length=32, description="`720p`, `640x360`, `source`.")
    params: Params = Params()

    def options(self, defaults: JobOptions) -> JobOptions:
        """Return the deployment's defaults with this request's choices on top."""
        chosen = self.params.model_dump(exclude_none=True)

        def over(base: Any, **extra: Any) -> Any:
            names = {name for name in base.__dataclass_fields__ if name in chosen}
            values = {name: getattr(base, name) for name in base.__dataclass_fields__}
            return type(base)(**{**values, **{name: chosen[name] for name in names}, **extra})

        frame: FrameOptions = over(
            defaults.frame, resolution=self.resolution, aspect_ratio=self.aspect_ratio
        )
        face: FaceOptions = over(defaults.face)
        mask: MaskOptions = over(defaults.mask)
        speech: SpeechOptions = over(defaults.speech)
        encode: EncodeOptions = over(defaults.encode)
        return JobOptions(frame, face, mask, speech, encode)


class PreviewRequest(JobRequest):
    """`POST /v1/avatar/preview`: a job, strictly read; nothing is stored under its id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    musetalk_job_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)] = "preview"


class JobCreate(BaseModel):
    """`POST /v1/avatar/jobs`. A field that is not here is refused: it would be dropped silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video_url: str = Field(min_length=1, max_length=MAX_URL_CHARS, repr=False)
    audio_url: str = Field(min_length=1, max_length=MAX_URL_CHARS, repr=False)
    aspect_ratio: str | None = Field(None, max_length=32)
    resolution: str | None = Field(None, max_length=32)
    params: Params = Params()
    musetalk_job_id: str | None = Field(
        None, min_length=1, max_length=MAX_ID_CHARS, description="Yours, or one is made."
    )
    webhook_url: str | None = Field(None, max_length=MAX_URL_CHARS, repr=False)
    metadata: dict[MetadataText, MetadataText | int | FiniteFloat | bool | None] | None = Field(
        None, description="Given back with the job; at most 64 entries and 16 KiB."
    )

    @field_validator("metadata", mode="before")
    @classmethod
    def _has_few_entries(cls, value: Any) -> Any:
        """Count before the entries are looked at: each one costs an error of its own."""
        if isinstance(value, dict) and len(value) > MAX_METADATA_ENTRIES:
            raise ValueError(f"at most {MAX_METADATA_ENTRIES} entries are kept")
        return value

    @field_validator("metadata", mode="after")
    @classmethod
    def _is_small(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_METADATA_BYTES:
            raise ValueError(f"at most {MAX_METADATA_BYTES} bytes are kept, as JSON and in all")
        return value
