"""What crosses the HTTP boundary, and the values the job driver, the poller and the API share.

Pydantic at the edge (unknown fields of `params` are refused), frozen dataclasses inside. The fields
of `Params` are made from the options' own definition in musetalk_pipeline/options.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    create_model,
    model_validator,
)
from pydantic.config import JsonDict

from musetalk_pipeline.errors import InvalidOptions
from musetalk_pipeline.option_spec import Option
from musetalk_pipeline.options import JobOptions, job_options
from orchestrator.job_api.batches import JobsOfBatch
from orchestrator.job_api.described import shows

MAX_ID_CHARS = 256
MAX_URL_CHARS = 8192
MAX_METADATA_ENTRIES, MAX_METADATA_BYTES = 64, 16 * 1024
# The bound also makes pydantic check the characters: half a surrogate pair cannot be sent back.
MetadataText = Annotated[str, Field(max_length=4096)]


def _few_entries(value: Any) -> Any:
    """Count before the entries are validated: each one costs an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_METADATA_ENTRIES:
        raise ValueError(f"at most {MAX_METADATA_ENTRIES} entries are kept")
    return value


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_METADATA_BYTES:
        raise ValueError(f"at most {MAX_METADATA_BYTES} bytes are kept, as JSON and in all")
    return value


Metadata = Annotated[
    dict[MetadataText, MetadataText | int | FiniteFloat | bool | None],
    BeforeValidator(_few_entries),
    AfterValidator(_small),
]


class _Choices(BaseModel):
    """Per-request options; everything left out takes the deployment's default (`defaults:` in
    serve_config.yaml).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def chosen(self) -> dict[str, object]:
        """Return the options that are chosen, by their names."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of the sounds that segments have of their own, each once, in order."""
        return JobOptions().with_choices(self.chosen()).time.urls

    def as_json(self) -> dict[str, Any]:
        """Return the options that are chosen, as JSON can hold them."""
        return self.model_dump(mode="json", include=set(self.chosen()))

    @model_validator(mode="after")
    def _times_fit_together(self) -> Self:
        try:
            JobOptions().with_choices(self.chosen()).time.check()
        except InvalidOptions as exc:
            raise ValueError(exc.message.removesuffix(".")) from exc
        for url in self.urls:
            if len(url) > MAX_URL_CHARS or is_inside(url):
                raise ValueError("segments: use an http, https, upload or file address as `url`")
        return self


def _fields() -> dict[str, Any]:
    """Return a field for each option of a job that a request may choose. None means: not chosen."""
    made: dict[str, Any] = {}
    for option in job_options():
        if option.spec.is_param:
            made[option.name] = (option.kind | None, option_field(option, None))
    return made


def option_field(option: Option, default: Any) -> Any:
    """Return a field with the bounds and the help of an option of the library."""
    bounds = {"ge": option.spec.least, "le": option.spec.most}
    given: dict[str, Any] = {name: at for name, at in bounds.items() if at is not None}
    return Field(default, description=option.spec.help, **given)


if TYPE_CHECKING:
    Params = _Choices  # a made class is not a type to a type checker
else:
    Params = create_model(
        "Params", __base__=_Choices, __module__=__name__, __doc__=_Choices.__doc__, **_fields()
    )


def _help(name: str) -> str:
    return next(option.spec.help for option in job_options() if option.name == name)


# Addresses that stand for something inside this worker. Callers cannot send them.
KEPT_VIDEO, SILENCE = "avatar:", "silence:"
_INSIDE = (KEPT_VIDEO, SILENCE)
AVATAR_ID = r"[0-9a-f]{32}"


# An address that a caller gets for a file that it has uploaded.
UPLOAD = "upload://"
UPLOAD_ID = r"[0-9a-f]{32}"


def is_inside(url: object) -> bool:
    """Return whether an address stands for something inside this worker."""
    return isinstance(url, str) and url.startswith(_INSIDE)


def is_upload(url: object) -> bool:
    """Return whether an address names an uploaded file."""
    return isinstance(url, str) and url.startswith(UPLOAD)


def _from_outside(url: str) -> str:
    if is_inside(url):
        raise ValueError("use an http, https, upload or file address")
    return url


Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_URL_CHARS),
    AfterValidator(_from_outside),
]


_MEDIA: JsonDict = {
    "video_url": "https://media.example/face.mp4",
    "audio_url": "https://media.example/speech.wav",
}
_NAMED: JsonDict = {"musetalk_job_id": "job-1", **_MEDIA}


class JobRequest(BaseModel):
    """One job, as `POST /generate` and the orchestrator's claims send it. Fields unknown to us are
    ignored.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        json_schema_extra=shows({**_NAMED, "params": {"crf": 20}}),
    )

    musetalk_job_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
    video_url: Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS, repr=False)]
    audio_url: Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS, repr=False)]
    aspect_ratio: str | None = Field(None, max_length=32, description=_help("aspect_ratio"))
    resolution: str | None = Field(None, max_length=32, description=_help("resolution"))
    params: Params = Params()

    @property
    def is_avatar(self) -> bool:
        """Whether only the avatar is made, because there is no sound."""
        return self.audio_url.startswith(SILENCE)

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses that media are fetched from."""
        return self.video_url, self.audio_url, *self.params.urls

    @property
    def avatar_id(self) -> str | None:
        """The avatar whose kept video is used; None if the video has an address."""
        is_kept = self.video_url.startswith(KEPT_VIDEO)
        return self.video_url.removeprefix(KEPT_VIDEO) if is_kept else None

    def options(self, defaults: JobOptions) -> JobOptions:
        """Return the deployment's defaults with this request's choices on top."""
        size = {"resolution": self.resolution, "aspect_ratio": self.aspect_ratio}
        options = defaults.with_choices({**self.params.chosen(), **size})
        return replace(options, time=options.time.of_video()) if self.is_avatar else options


class PreviewRequest(JobRequest):
    """`POST /v1/avatar/preview`: a job, strictly read; nothing is stored under its id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    musetalk_job_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)] = "preview"
    video_url: Url = Field(repr=False)
    audio_url: Url = Field(repr=False)
    boxes: bool = Field(True, description="The face box and the crop box are drawn into the frame.")


class EstimateRequest(BaseModel):
    """`POST /v1/estimate`: the fields of a job that decide how long it takes, strictly read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video_url: Url | None = Field(None, description="Required without avatar_id.", repr=False)
    avatar_id: str | None = Field(
        None, pattern=f"^{AVATAR_ID}$", description="A prepared avatar, in place of video_url."
    )
    audio_url: Url = Field(repr=False)
    aspect_ratio: str | None = Field(None, max_length=32)
    resolution: str | None = Field(None, max_length=32)
    params: Params = Params()


class JobCreate(BaseModel):
    """`POST /v1/avatar/jobs`. A field that is not here is refused: it would be dropped silently."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra=shows(
            _MEDIA,
            {
                **_NAMED,
                "resolution": "512x512",
                "params": {"fit": "crop"},
                "webhook_url": "https://hooks.example/lipsync",
                "metadata": {"customer": 17},
            },
        ),
    )

    video_url: Url | None = Field(None, description="Required without avatar_id.", repr=False)
    avatar_id: str | None = Field(
        None, pattern=f"^{AVATAR_ID}$", description="A prepared avatar, in place of video_url."
    )
    audio_url: Url = Field(repr=False)
    aspect_ratio: str | None = Field(None, max_length=32)
    resolution: str | None = Field(None, max_length=32)
    params: Params = Params()
    musetalk_job_id: str | None = Field(
        None, min_length=1, max_length=MAX_ID_CHARS, description="Yours, or one is made."
    )
    webhook_url: str | None = Field(None, max_length=MAX_URL_CHARS, repr=False)
    metadata: Metadata | None = Field(
        None, description="Given back with the job; at most 64 entries and 16 KiB."
    )


class BatchCreate(BaseModel):
    """`POST /v1/avatar/batches`. A field that is not here is refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra=shows(
            {
                "jobs": [
                    {**_MEDIA, "musetalk_job_id": "ad-de"},
                    {**_MEDIA, "musetalk_job_id": "ad-fr", "resolution": "720p"},
                ],
                "webhook_url": "https://hooks.example/lipsync",
                "metadata": {"campaign": "spring"},
            }
        ),
    )

    jobs: JobsOfBatch[JobCreate]
    webhook_url: str | None = Field(
        None,
        max_length=MAX_URL_CHARS,
        description="It is sent a signed POST when all jobs have ended.",
        repr=False,
    )
    metadata: Metadata | None = Field(
        None, description="Given back with the batch; at most 64 entries and 16 KiB."
    )


class AvatarCreate(BaseModel):
    """`POST /v1/avatars`. A field that is not here is refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra=shows({"video_url": _MEDIA["video_url"], "duration_s": 2}),
    )

    video_url: Url = Field(repr=False)
    duration_s: FiniteFloat | None = Field(
        None, gt=0, description="Only the beginning of the video is prepared. Default: all of it."
    )
    aspect_ratio: str | None = Field(None, max_length=32)
    resolution: str | None = Field(None, max_length=32)
    params: Params = Params()
    musetalk_job_id: str | None = Field(
        None, min_length=1, max_length=MAX_ID_CHARS, description="Yours, or one is made."
    )

    def request(self, job_id: str) -> JobRequest:
        """Return the job that prepares the avatar."""
        length = "" if self.duration_s is None else f"{self.duration_s:g}"
        return JobRequest(
            musetalk_job_id=job_id,
            audio_url=SILENCE + length,
            **self.model_dump(exclude={"musetalk_job_id", "duration_s"}),
        )
