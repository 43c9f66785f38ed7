"""Spans of a video that speak, each with an audio of its own: the option `segments`.

What a plan calls a segment is another thing, so these are called spans in the code.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from musetalk_pipeline.errors import InvalidOptions

LONGEST_S = 86_400.0  # a day; what a deployment accepts is shorter (`inputs.max_duration_s`)
MOST_SPANS = 100


@dataclass(frozen=True, slots=True)
class SpanAudio:
    """What is spoken during a segment.

    `url` is the address of a sound of its own; without it, the audio of the job is meant. `start_s`
    and `end_s` choose a part of it. For the audio of the job they default to `audio_start_s` and
    `audio_end_s`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    url: str | None = field(default=None, repr=False)  # it may be signed
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be right for any file. Raises: ValueError."""
        if self.url == "":
            raise ValueError("`url` is empty; leave it out for the sound of the job")
        for time_s in (self.start_s, self.end_s):
            _check_time(time_s)
        if self.start_s is not None and self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"the audio ends at {self.end_s:g}, which is not after its start")


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """A span of the video, in seconds from the beginning of its file.

    Without an `audio` (null) it keeps its own frames and sound.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    start_s: float
    end_s: float
    audio: SpanAudio | None

    def __post_init__(self) -> None:
        """Refuse what cannot be right for any file. Raises: ValueError."""
        for time_s in (self.start_s, self.end_s):
            _check_time(time_s)
        if self.end_s <= self.start_s:
            raise ValueError(f"it is empty: {self.end_s:g} is not after {self.start_s:g}")


def read_spans(text: str) -> tuple[VideoSpan, ...]:
    """Return the spans that a JSON list of objects describes.

    Raises:
        ValueError: it is not such a list; the message says where.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"this is not JSON: {exc}") from exc
    if not isinstance(given, list):
        raise ValueError("use a JSON list of objects with start_s, end_s and audio")
    spans = []
    for number, one in enumerate(given, 1):
        try:
            values = _values(one, VideoSpan)
            if values["audio"] is not None:
                values["audio"] = SpanAudio(**_values(values["audio"], SpanAudio))
            spans.append(VideoSpan(**values))
        except ValueError as exc:
            raise ValueError(f"segment {number}: {exc}") from exc
    return tuple(spans)


def _values(given: object, kind: type[VideoSpan] | type[SpanAudio]) -> dict[str, Any]:
    """Return the fields of an object of JSON, all of them known and of the right types."""
    names = [each.name for each in fields(kind)]
    if not isinstance(given, dict):
        raise ValueError(f"use an object with {', '.join(names)}")
    for name, value in given.items():
        if name not in names:
            raise ValueError(f"`{name}` is unknown; there are {', '.join(names)}")
        if value is None and kind is SpanAudio:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name.endswith("_s") and not is_number:
            raise ValueError(f"`{name}` is not a number")
        if name == "url" and not isinstance(value, str):
            raise ValueError("`url` is not text")
    if kind is VideoSpan and (missing := given.keys() ^ set(names)):
        raise ValueError(f"`{min(missing)}` is missing")
    return {**given}


def check_spans(spans: tuple[VideoSpan, ...]) -> None:
    """Refuse spans that cannot be right for any file.

    Raises:
        InvalidOptions: they are too many, overlap, or have no audio at all.
    """
    if len(spans) > MOST_SPANS:
        raise InvalidOptions(
            f"`segments` has {len(spans)} entries; at most {MOST_SPANS} are accepted. Send the "
            "rest as another job.",
        )
    if spans and all(span.audio is None for span in spans):
        raise InvalidOptions(
            "No entry of `segments` has audio, so nothing would be drawn. Give at least one of "
            "them an `audio`, or leave `segments` out."
        )
    ordered = sorted(spans, key=lambda span: span.start_s)
    for one, other in itertools.pairwise(ordered):
        if other.start_s < one.end_s:
            raise InvalidOptions(
                f"The segments {one.start_s:g} to {one.end_s:g} s and {other.start_s:g} to "
                f"{other.end_s:g} s overlap. Let each begin when the one before it has ended.",
                input="video",
            )


def _check_time(time_s: float | None) -> None:
    if time_s is not None and not (math.isfinite(time_s) and 0 <= time_s <= LONGEST_S):
        raise ValueError(f"a time is 0 to {LONGEST_S:.0f} seconds")
