"""Lenient reading of jobs from claims and `POST /generate`.

The worker that this one replaces accepted any string as a size and any key in `params`, and ignored
all of them. This worker honours them, but one that it cannot honour must not fail the job. It is
read as what it obviously means (`9x16`, `portrait`, `480`, `4k`), or replaced by the default, with
a sentence in `warnings`. The public job API is strict instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from musetalk_pipeline.errors import InvalidOptions
from musetalk_pipeline.option_spec import options_of
from musetalk_pipeline.options import FrameOptions
from musetalk_pipeline.pixels.picture import target_size
from musetalk_pipeline.time_options import TimeOptions
from serve_app.contract.requests import (
    AVATAR_ID,
    KEPT_VIDEO,
    JobRequest,
    Params,
    is_inside,
    is_upload,
)

MAX_SHOWN_CHARS = 32  # of a value or a name in a warning, and of a size that is read at all
MAX_SHOWN_NAMES = 8
MAX_NUMBER = 10**24

AS_SOURCE = frozenset({"", "auto", "default", "native", "none", "null", "original", "source"})
ASPECT_WORDS = {
    "portrait": "9:16",
    "vertical": "9:16",
    "landscape": "16:9",
    "horizontal": "16:9",
    "widescreen": "16:9",
    "square": "1:1",
}
RESOLUTION_WORDS = {
    "sd": "480p",
    "hd": "720p",
    "fhd": "1080p",
    "fullhd": "1080p",
    "2k": "1440p",
    "qhd": "1440p",
    "4k": "2160p",
    "uhd": "2160p",
    "8k": "4320p",
}

_NUMBER = r"(\d{1,5}(?:\.\d{1,3})?)"
_ASPECT = re.compile(rf"{_NUMBER}[:x×*/_-]{_NUMBER}")
_SIZE = re.compile(r"(\d{1,5})[x×*:/_-](\d{1,5})")
_SHORT_SIDE = re.compile(r"(\d{1,5})(?:p|i|px)?")

# Sizes are checked against a small source of a common shape, because only the shape matters here.
_SOURCE = (320, 180)


def read_leniently(
    payload: Mapping[str, Any], *, legacy_size_source: bool = False, accepts_uploads: bool = False
) -> tuple[JobRequest, tuple[str, ...]]:
    """Return the job in `payload`, and a sentence for every value that was changed or ignored.

    `legacy_size_source`: ignore `aspect_ratio` and `resolution`, as the predecessor did, and keep
    the picture of the source. Unknown fields are ignored without a sentence. `avatar_id` counts if
    there is no `video_url`. `accepts_uploads`: whoever calls this checks whose the uploads are that
    the addresses name; otherwise such an address counts as none.

    Raises:
        ValidationError: the id or a URL is missing, or cannot be used.
    """
    warnings: list[str] = []
    fields = {name: payload.get(name) for name in ("musetalk_job_id", "video_url", "audio_url")}
    for name in ("video_url", "audio_url"):
        if is_inside(fields[name]) or (is_upload(fields[name]) and not accepts_uploads):
            fields[name] = None
    avatar_id = payload.get("avatar_id")
    is_id = isinstance(avatar_id, str) and re.fullmatch(AVATAR_ID, avatar_id)
    if is_id and not fields["video_url"]:
        fields["video_url"] = f"{KEPT_VIDEO}{avatar_id}"
    job_id = fields["musetalk_job_id"]
    if isinstance(job_id, int) and _is_number(job_id):
        fields["musetalk_job_id"] = str(job_id)
    if not legacy_size_source:
        fields |= _sizes(payload.get("aspect_ratio"), payload.get("resolution"), warnings)
    params = _params(payload.get("params"), warnings)
    if not accepts_uploads and any(is_upload(url) for url in params.urls):
        warnings.append("params.segments: uploads cannot be used here; no segment was used.")
        params = params.model_copy(update={"segments": None})
    fields["params"] = params
    return JobRequest.model_validate(fields), tuple(warnings)


def _sizes(aspect: object, resolution: object, warnings: list[str]) -> dict[str, str | None]:
    """Return the two fields that choose the picture, so that the pipeline can make it."""
    read_aspect = _field("aspect_ratio", aspect, _aspect(aspect), warnings)
    read_resolution = _field("resolution", resolution, _resolution(resolution), warnings)
    if not _can_be_made(read_aspect, read_resolution):
        # The shape is kept: a wrong shape crops people or adds bars, and a wrong size does neither.
        warnings.append(
            f"resolution {_shown(resolution)} cannot be made with aspect_ratio {_shown(aspect)}; "
            "the source's size was used."
        )
        read_resolution = None
    return {"aspect_ratio": read_aspect, "resolution": read_resolution}


def _field(name: str, given: object, meant: str | None, warnings: list[str]) -> str | None:
    """Return the value to use for a size field. `meant`: its strict spelling, None if unknown."""
    if given is None:
        return None
    if isinstance(given, str) and _is_strict(name, given):
        return given
    if meant is None and _word(given) in AS_SOURCE:
        warnings.append(f"{name} {_shown(given)} was taken as `source`.")
        return None
    if meant is None or not _is_strict(name, meant):
        warnings.append(f"{name} {_shown(given)} is not understood; the source's was used.")
        return None
    warnings.append(f"{name} {_shown(given)} was taken as `{meant}`.")
    return meant


def _aspect(given: object) -> str | None:
    word = _word(given)
    match = _ASPECT.fullmatch(word)
    if match is None:
        return ASPECT_WORDS.get(word)
    width, height = Fraction(match[1]), Fraction(match[2])
    if height == 0:
        return None
    if width.denominator == height.denominator == 1:
        return f"{width}:{height}"
    shape = width / height
    return f"{shape.numerator}:{shape.denominator}"


def _resolution(given: object) -> str | None:
    word = _word(given)
    if match := _SIZE.fullmatch(word):
        return f"{match[1]}x{match[2]}"
    if match := _SHORT_SIDE.fullmatch(word):
        return f"{match[1]}p"
    return RESOLUTION_WORDS.get(word.replace("-", ""))


def _is_strict(name: str, text: str) -> bool:
    """Whether the pipeline itself takes this text for the field `name`, and can make it."""
    if len(text) > MAX_SHOWN_CHARS or not text.isprintable():
        return False
    return _can_be_made(text, None) if name == "aspect_ratio" else _can_be_made(None, text)


def _can_be_made(aspect: str | None, resolution: str | None) -> bool:
    try:
        target_size(*_SOURCE, FrameOptions(resolution=resolution, aspect_ratio=aspect))
    except InvalidOptions:
        return False
    return True


def _params(given: object, warnings: list[str]) -> Params:
    """Return the params that are known and valid; each is checked by itself."""
    if given is None:
        return Params()
    if not isinstance(given, Mapping):
        warnings.append("params is not an object and was ignored.")
        return Params()
    unknown = [name for name in given if name not in Params.model_fields]
    if unknown:
        warnings.append(f"params: {_listed(unknown)} unknown and ignored.")
    good: dict[str, Any] = {}
    for name in Params.model_fields:
        if name not in given:
            continue
        try:
            Params.model_validate({name: given[name]})
        except ValidationError as exc:
            warnings.append(f"params.{name}: {_reason(exc)}; the default was used.")
        else:
            good[name] = given[name]
    try:
        return Params.model_validate(good)
    except ValidationError as exc:
        warnings.append(f"params: {_reason(exc)}; no time in them was used.")
        times = {option.name for option in options_of(TimeOptions)}
        return Params.model_validate({name: good[name] for name in good.keys() - times})


def _reason(exc: ValidationError) -> str:
    """Return the first fault without the value that was given, and without a full stop."""
    error = exc.errors(include_input=False, include_url=False)[0]
    own = error.get("ctx", {}).get("error")
    return str(own or error["msg"]).removesuffix(".")


def _listed(names: list[Any]) -> str:
    """Return the first few names and the number of the others, with `is` or `are`."""
    shown = ", ".join(_shown(name) for name in names[:MAX_SHOWN_NAMES])
    if len(names) > MAX_SHOWN_NAMES:
        return f"{shown} and {len(names) - MAX_SHOWN_NAMES} more are"
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _word(given: object) -> str:
    """Return a size in lower case without spaces; a number becomes its digits."""
    if _is_number(given):
        given = f"{given:g}" if isinstance(given, float) else str(given)
    if not isinstance(given, str) or len(given) > MAX_SHOWN_CHARS:
        return "?"
    return "".join(given.lower().split())


def _is_number(given: object) -> bool:
    """Whether this is a number that Python converts to text: it refuses to from 4300 digits on."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return False
    return isinstance(given, float) or abs(given) < MAX_NUMBER


def _shown(given: object) -> str:
    """Return a value as a sentence can show it: printable and short, or else its type."""
    if not (isinstance(given, str) or _is_number(given)):
        return f"({type(given).__name__})"
    text = str(given)
    short = "".join(c for c in text[:MAX_SHOWN_CHARS] if c.isprintable())
    return f"`{short}{'…' if len(text) > MAX_SHOWN_CHARS else ''}`"


__all__ = ["read_leniently"]
