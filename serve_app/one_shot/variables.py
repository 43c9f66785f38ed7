"""The variables of a one-shot job (docs/protocol.md §4), checked before anything is fetched."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from musetalk_pipeline.errors import InvalidOptions, SourceRefused, UploadFailed
from musetalk_pipeline.options import FrameOptions
from musetalk_pipeline.pixels.picture import target_size
from serve_app.contract.requests import JobRequest
from serve_app.outputs.put import PutStore

VARIABLES = {
    "VIDEO_URL": "The video has this http, https or file address. A job needs one.",
    "AUDIO_URL": "The speech has this http, https or file address. A job needs one.",
    "OUTPUT_URL": "The result is sent to this address, usually a signed one, by HTTP PUT.",
    "OUTPUT_PATH": (
        "Without OUTPUT_URL, the result is written to this file and its sidecar next to it, ending "
        "in .json. Its folder is made. It defaults to output.mp4 in the folder for temporary files."
    ),
    "RESOLUTION": "The size is 720p (the short side), 640x360, or source, which is the default.",
    "ASPECT_RATIO": "The shape is 9:16 and the like, or source, which is the default.",
    "PARAMS": "The options are a JSON object; docs/configuration.md lists them.",
    "JOB_ID": "The job has this id in its sidecar; it defaults to one-shot.",
    "SERVE_CONFIG": "The configuration is this file; it defaults to serve_config.yaml here.",
}
# A size that is refused for a square of this side is refused for every source.
SQUARE_PX = 1000


@dataclass(frozen=True, slots=True)
class OneShot:
    """The job of the environment. `output_path` is absolute, and is used without `output_url`."""

    request: JobRequest
    output_url: str | None
    output_path: Path


def read_one_shot(env: Mapping[str, str]) -> OneShot:
    """Read the variables.

    Raises:
        InvalidOptions: one is missing or invalid. The message names it.
    """
    missing = [name for name in ("VIDEO_URL", "AUDIO_URL") if not env.get(name)]
    if missing:
        raise InvalidOptions(f"Set {' and '.join(missing)}.")
    output_url = _output_url(env)
    request = _request(env)
    _check_size(request)
    return OneShot(request, output_url, _output_path(env))


def make_room(path: Path) -> None:
    """Make the folder of `path`, before a result is computed that cannot be written.

    Raises:
        UploadFailed: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UploadFailed(f"The folder of OUTPUT_PATH cannot be made: {exc.strerror}.") from exc
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UploadFailed("The folder of OUTPUT_PATH cannot be written to.")


def first_line(exc: Exception) -> str:
    """Return the fault in one line, without the given values."""
    if isinstance(exc, ValidationError):
        error = exc.errors(include_input=False)[0]
        return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
    return (str(exc).splitlines() or [""])[0]


def _output_url(env: Mapping[str, str]) -> str | None:
    url = env.get("OUTPUT_URL")
    if not url:
        return None
    if env.get("OUTPUT_PATH"):
        raise InvalidOptions("Set OUTPUT_URL or OUTPUT_PATH, not both.")
    try:
        PutStore(url)
    except SourceRefused as exc:
        # The message is that of downloads, which follow the same rules.
        reason = exc.message.removeprefix("Source refused: ").replace("fetched", "used")
        raise InvalidOptions(f"OUTPUT_URL cannot be used. {reason}") from exc
    return url


def _output_path(env: Mapping[str, str]) -> Path:
    path = Path(env.get("OUTPUT_PATH") or Path(tempfile.gettempdir()) / "output.mp4").absolute()
    if path.is_dir():
        raise InvalidOptions("OUTPUT_PATH is a folder. Name the file to write.")
    if path.suffix == ".json":
        raise InvalidOptions("OUTPUT_PATH ends in .json, as its sidecar does. Name an .mp4 file.")
    return path


def _request(env: Mapping[str, str]) -> JobRequest:
    try:
        return JobRequest(
            musetalk_job_id=env.get("JOB_ID") or "one-shot",
            video_url=env["VIDEO_URL"],
            audio_url=env["AUDIO_URL"],
            resolution=env.get("RESOLUTION") or None,
            aspect_ratio=env.get("ASPECT_RATIO") or None,
            params=json.loads(env.get("PARAMS") or "{}"),
        )
    except json.JSONDecodeError as exc:
        raise InvalidOptions(f"PARAMS is not JSON: {first_line(exc)}.") from exc
    except ValidationError as exc:
        raise InvalidOptions(f"A variable cannot be used: {first_line(exc)}.") from exc


def _check_size(request: JobRequest) -> None:
    """Refuse a size that no video can have, as people type these."""
    size = FrameOptions(request.resolution, request.aspect_ratio)
    try:
        target_size(SQUARE_PX, SQUARE_PX, size)
    except InvalidOptions as exc:
        raise InvalidOptions(f"RESOLUTION or ASPECT_RATIO: {exc.message}") from exc
