"""Which stream of a file is its video, whether it can be used, and what its header means; pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from musetalk_pipeline.errors import InvalidVideo, MediaTooLarge
from musetalk_pipeline.media.media_file import MediaFile
from musetalk_pipeline.options import MediaLimits

DEFAULT_STREAM_BONUS = 5_000_000  # pixels; ffmpeg's own, when it chooses a stream

MIN_FPS = 1  # guess: less is a slide show, and a job's length would round to nothing

# Codecs whose packets and frames agree one to one, each packet's time being its frame's.
INDEXED_CODECS = frozenset(
    {
        *("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "prores"),
        *("dnxhd", "ffv1", "png", "qtrle", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "v210"),
    }
)
VIDEO_CODECS = INDEXED_CODECS | {
    *("vp8", "h263", "h263p", "h261", "flv1", "theora", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"),
    *("wmv3", "vc1", "dvvideo", "cinepak", "svq3", "rpza", "vp6", "vp6f", "magicyuv", "cfhd"),
    "gif",
}


def constant_rate(stream: Mapping[str, Any], limits: MediaLimits) -> Fraction:
    """Return the exact rate at which the reference counts the frames of `stream`.

    It is ffmpeg's `r_frame_rate`, or the average if that is a time base rather than a rate: above
    210 with an average below 70 (ffmpeg's `av_guess_frame_rate`), or above the limit.
    """
    base, average = _rate(stream.get("r_frame_rate")), _rate(stream.get("avg_frame_rate"))
    if average and (not base or (average < 70 and base > 210) or base > limits.max_fps):
        base = average
    if not base:
        raise InvalidVideo("The video does not declare its frame rate.")
    if base < MIN_FPS:
        raise InvalidVideo(
            f"The video has less than {MIN_FPS} frame a second, which is too few to show speech.",
            fps=float(base),
        )
    if base > limits.max_fps:
        raise MediaTooLarge(
            f"The video has {float(base):.0f} frames a second; at most {limits.max_fps:.0f} are "
            "accepted.",
            fps=float(base),
            max_fps=limits.max_fps,
        )
    return base


def displayed_size(stream: Mapping[str, Any]) -> tuple[int, int]:
    """Return width and height in pixels with the rotation applied that players apply."""
    width, height = int(stream["width"]), int(stream["height"])
    return (height, width) if is_lying(stream.get("side_data_list", [])) else (width, height)


def is_lying(side_data: Iterable[Mapping[str, Any]]) -> bool:
    """Whether players turn a picture by a quarter, so that its width becomes its height."""
    turns = [float(side.get("rotation", 0)) for side in side_data]
    return any(abs(abs(turn) % 180 - 90) < 1 for turn in turns)


def _rate(text: str | None) -> Fraction:
    with contextlib.suppress(ValueError, ZeroDivisionError):
        return max(Fraction(0), Fraction(text or 0))
    return Fraction(0)


def choose_video(media: MediaFile) -> dict[str, Any]:
    """Return the stream that ffmpeg itself would take, by default flag, then by size."""
    videos = [s for s in media.streams if s.get("codec_type") == "video"]
    moving = [s for s in videos if not is_still(s)]
    if not moving:
        what = "only a cover picture" if videos else "no picture"
        raise InvalidVideo(
            f"The video file holds {what}. Send a video with a face in it.",
            hint="Send a video or a picture, and make sure that the two are not swapped.",
            streams=len(media.streams),
        )

    def rank(stream: dict[str, Any]) -> int:
        bonus = DEFAULT_STREAM_BONUS * int(stream.get("disposition", {}).get("default", 0))
        return int(stream.get("width", 0)) * int(stream.get("height", 0)) + bonus

    return max(moving, key=rank)


def is_still(stream: Mapping[str, Any]) -> bool:
    """Whether a stream is a cover picture or the like, beside what a player shows."""
    flags = stream.get("disposition", {})
    return any(flags.get(name) for name in ("attached_pic", "timed_thumbnails", "still_image"))


def check_size(stream: Mapping[str, Any], limits: MediaLimits) -> None:
    """Check the sides of the picture of `stream`.

    Raises:
        MediaTooLarge: it has too many pixels.
    """
    width, height = int(stream.get("width", 0)), int(stream.get("height", 0))
    if max(width, height) > limits.max_side_px or width * height > limits.max_pixels:
        raise MediaTooLarge(
            f"The picture is {width}x{height}; at most {limits.max_side_px} pixels a side and "
            f"{limits.max_pixels / 1e6:.1f} megapixels are accepted.",
            width=width,
            height=height,
        )


def check_video(stream: Mapping[str, Any], limits: MediaLimits) -> None:
    """Check the sides and the codec of `stream`.

    Raises:
        InvalidVideo, MediaTooLarge: it cannot be used.
    """
    check_size(stream, limits)
    codec = stream.get("codec_name", "unknown")
    if codec not in VIDEO_CODECS:
        raise InvalidVideo(
            f"The video's codec ({codec}) is not accepted. H.264 in MP4 always is.", codec=codec
        )
    sides = int(stream.get("width", 0)), int(stream.get("height", 0))
    if min(sides) < 2 or stream.get("pix_fmt") is None:
        raise InvalidVideo("The video holds no picture that can be decoded.", codec=codec)
