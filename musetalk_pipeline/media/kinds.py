"""Whether a file is a video, sound or a picture, and what it declares, before any job.

The file is judged by its content alone. Only pictures are decoded; a job checks everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from musetalk_pipeline.errors import InvalidFile
from musetalk_pipeline.media.media_file import MediaFile, admit, seconds
from musetalk_pipeline.media.still import open_still, picture_in
from musetalk_pipeline.media.video_stream import (
    check_size,
    constant_rate,
    displayed_size,
    is_still,
)
from musetalk_pipeline.options import MediaLimits

MediaKind = Literal["video", "audio", "picture"]


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What a file declares. `duration_s` is None if it does not say, the others if it has no
    picture; `fps` too for a still picture.
    """

    kind: MediaKind
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None


def describe_media(path: Path, limits: MediaLimits, sha256: str | None = None) -> MediaFacts:
    """Return what kind of media a file is.

    Raises:
        InvalidFile, MediaTooLarge: it can be neither the video nor the audio of a job.
    """
    if (picture := picture_in(path)) is not None and path.stat().st_size <= limits.max_bytes:
        still = open_still(path, picture, InvalidFile)
        return MediaFacts("picture", None, still.width, still.height)
    media = admit(path, limits, InvalidFile, sha256)
    videos = [s for s in media.streams if s.get("codec_type") == "video" and not is_still(s)]
    if videos:
        return _of_video(media, videos[0], limits)
    if any(stream.get("codec_type") == "audio" for stream in media.streams):
        return MediaFacts("audio", _length_s(media))
    raise InvalidFile("The file holds neither moving pictures nor sound.")


def _of_video(media: MediaFile, stream: Mapping[str, Any], limits: MediaLimits) -> MediaFacts:
    check_size(stream, limits)
    width, height = displayed_size(stream)
    fps = float(constant_rate(stream, limits))
    return MediaFacts("video", _length_s(media), width, height, round(fps, 3))


def _length_s(media: MediaFile) -> float | None:
    longest = max([media.duration_s, *(seconds(s.get("duration")) for s in media.streams)])
    return round(longest, 3) or None
