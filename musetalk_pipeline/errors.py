"""Everything that can go wrong with a job, as types.

    PipelineError
    ├── MediaError                 the input is at fault; nobody should retry
    │   ├── DownloadFailed         stage download
    │   │   └── SourceUnreachable  stage download
    │   ├── SourceRefused          stage download
    │   ├── MediaTooLarge          stage validation
    │   ├── InvalidVideo           stage validation
    │   ├── InvalidAudio           stage validation
    │   ├── InvalidFile            stage validation
    │   ├── AudioTooShort          stage validation
    │   ├── InvalidOptions         stage validation
    │   ├── NoFaceFound            stage preprocessing
    │   └── FaceNotFound           stage preprocessing
    └── ProcessingError            this worker is at fault
        ├── ModelLoadFailed        stage inference
        ├── OutOfGpuMemory         stage inference, retryable
        ├── StageFailed            any stage, retryable
        │   └── GpuLost            stage inference, retryable, in another process
        ├── DeadlineExceeded       any stage, retryable
        ├── UploadFailed           stage upload, retryable
        └── JobCancelled           any stage

`code` is stable and meant for programs; the message is a sentence meant for the person who sent the
job. Messages and details never hold secrets, signed query strings or stack traces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

Detail = str | int | float | bool
InputName = Literal["video", "audio"]


class Stage(StrEnum):
    """Where in its life a job failed; the names are fixed by the worker contract."""

    DOWNLOAD = "download"
    VALIDATION = "validation"
    PREPROCESSING = "preprocessing"
    INFERENCE = "inference"
    POSTPROCESSING = "postprocessing"
    UPLOAD = "upload"
    UNKNOWN = "unknown"


class PipelineError(Exception):
    """A job cannot continue. It can be pickled, so it crosses processes with all its fields.

    Args:
        message: one sentence for the person who sent the job.
        hint: what to do about it; by default, the type's own.
        input: the input that is at fault, if it is one of the two.
        details: facts for programs, such as a status code or a limit.

    `stage_seconds`: seconds by stage that had been spent on the job by then, added by whoever
    measured them.
    """

    code: ClassVar[str] = "unknown"
    error_type: ClassVar[str] = "unknown_error"
    default_stage: ClassVar[Stage] = Stage.UNKNOWN
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str | None] = None
    default_input: ClassVar[InputName | None] = None

    def __init__(
        self,
        message: str,
        *,
        stage: Stage | None = None,
        hint: str | None = None,
        input: InputName | None = None,
        **details: Detail,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage or self.default_stage
        self.hint = hint or self.default_hint
        self.input = input or self.default_input
        self.details = details
        self.stage_seconds: dict[str, float] = {}

    def about(self, input: InputName) -> Self:
        """Set which input is at fault, unless it is set already; return the error itself."""
        self.input = self.input or input
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {"stage": self.stage, "hint": self.hint, "input": self.input, **self.details}
        return _rebuild, (type(self), self.message, fields), {"stage_seconds": self.stage_seconds}


def _rebuild(kind: type[PipelineError], message: str, fields: dict[str, Any]) -> PipelineError:
    return kind(message, **fields)


@contextmanager
def at_fault(input: InputName) -> Iterator[None]:
    """Set this input in every MediaError raised inside that does not name one already."""
    try:
        yield
    except MediaError as error:
        error.about(input)
        raise


class MediaError(PipelineError):
    """The video, the audio or their addresses cannot be used. Do not send them again."""

    code = "media_error"
    error_type = "media_error"
    default_stage = Stage.VALIDATION


class DownloadFailed(MediaError):
    """The address answered with an error, an empty body, or not at all after every attempt."""

    code = "download_failed"
    default_stage = Stage.DOWNLOAD


class SourceUnreachable(DownloadFailed):
    """No connection to the source could be made or kept: its name does not resolve, it refuses, or
    the connection broke.

    To a caller it is a failed download like any other. From a single machine, a fault of the source
    cannot be distinguished from one of the machine's own network.
    """


class SourceRefused(MediaError):
    """The address is not one that this worker may fetch from (private, malformed, wrong scheme)."""

    code = "source_refused"
    default_stage = Stage.DOWNLOAD


class MediaTooLarge(MediaError):
    """More bytes, seconds, pixels, frames a second or streams than the configured limits."""

    code = "media_too_large"
    default_hint = "Shorten the file, or scale it down; the operator sets the limits (`inputs:`)."


class InvalidVideo(MediaError):
    """Not a video, truncated, without frames, or in a form that is refused (playlists and the
    like).
    """

    code = "invalid_video"
    default_hint = "Send a video that plays to its end in a browser, such as H.264 in MP4."
    default_input = "video"


class InvalidAudio(MediaError):
    """Not audio, truncated, or without samples."""

    code = "invalid_audio"
    default_hint = "Send sound that plays to its end in a browser, such as WAV, MP3 or M4A."
    default_input = "audio"


class InvalidFile(MediaError):
    """A file that was uploaded is neither a video nor sound nor a picture, or truncated."""

    code = "invalid_file"
    default_hint = "Send a video or sound that plays to its end in a browser, or a picture."


class AudioTooShort(MediaError):
    """Less than 80 ms of sound, or less than one video frame."""

    code = "audio_too_short"
    default_hint = "Send longer audio: the video that is made lasts as long as the audio does."
    default_input = "audio"


class InvalidOptions(MediaError):
    """A resolution, an aspect ratio, a frame rate or a time that is malformed or out of bounds, or
    does not fit the files.
    """

    code = "invalid_options"


class NoFaceFound(MediaError):
    """No frame that the audio reaches holds a detectable face; or one has none where all must."""

    code = "no_face"
    default_stage = Stage.PREPROCESSING
    default_hint = "Send a video in which one face is large, well lit and turned to the camera."
    default_input = "video"


class FaceNotFound(MediaError):
    """There is no face at the place that the option `face` names."""

    code = "face_not_found"
    default_stage = Stage.PREPROCESSING
    default_hint = "Choose one of the faces that the message names; a preview shows them."


class ProcessingError(PipelineError):
    """A fault of this worker, not of the input."""

    code = "processing_error"
    error_type = "processing_error"


class ModelLoadFailed(ProcessingError):
    """A weight file is missing, damaged or not the file that its name promises."""

    code = "model_load_failed"
    default_stage = Stage.INFERENCE


class OutOfGpuMemory(ProcessingError):
    """Not even a batch of one frame fits. Smaller batches were tried first."""

    code = "out_of_gpu_memory"
    default_stage = Stage.INFERENCE
    retryable = True

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message, **{**fields, "is_oom": True})


class StageFailed(ProcessingError):
    """A stage crashed or its replica died more often than the retry rule allows."""

    code = "stage_failed"
    retryable = True


class GpuLost(StageFailed):
    """The GPU failed in a way after which this process can never use it again."""

    default_stage = Stage.INFERENCE


class DeadlineExceeded(ProcessingError):
    """A stage took longer than its deadline, which follows from the number of frames."""

    code = "deadline_exceeded"
    retryable = True


class UploadFailed(ProcessingError):
    """The finished video could not be stored."""

    code = "upload_failed"
    default_stage = Stage.UPLOAD
    retryable = True


class JobCancelled(ProcessingError):
    """The result is no longer needed: the client went away, or the job was cancelled."""

    code = "cancelled"
