"""Still pictures: a JPEG, PNG or WebP file becomes a video of one frame.

The picture is turned upright as its camera noted, what is transparent becomes white, and a large
one is scaled down. It is then stored without loss as the only frame of a small Matroska file, which
the stages read like any other video.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musetalk_pipeline.errors import InvalidFile, InvalidVideo, MediaTooLarge
from musetalk_pipeline.files import replacing
from musetalk_pipeline.media.containers import Container
from musetalk_pipeline.media.media_file import WHOLE_FILE
from musetalk_pipeline.media.sandbox import ChildLimits, ffmpeg, ffprobe, local_input, run
from musetalk_pipeline.media.video_stream import displayed_size

PICTURE_S = 60.0  # guess: a large picture takes 2 s; the rest is for a machine under load
STILL_FPS = 25  # the rate that MuseTalk was trained at
# The longest side of the frame. A portrait of a phone has 4032, which as a video would be beyond
# what most players can show.
LONGEST_PX = 1920
MAX_PIXELS, MAX_SIDE_PX = 64_000_000, 16_384  # of the file; it is decoded once

_SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png_pipe"),
    (re.compile(rb"\xff\xd8\xff"), "jpeg_pipe"),
    (re.compile(rb"RIFF....WEBP", re.S), "webp_pipe"),
)
HINT = "Send a JPEG, PNG or WebP picture that a browser shows; animations are sent as videos."

Refusal = type[InvalidVideo] | type[InvalidFile]


@dataclass(frozen=True, slots=True)
class Still:
    """What a picture file shows. `width`, `height`: as displayed, in pixels."""

    width: int
    height: int


def picture_in(path: Path) -> Container | None:
    """Return the kind of picture that a file's first bytes identify; None if it is none."""
    with path.open("rb") as file:
        head = file.read(16)
    for signature, demuxer in _SIGNATURES:
        if signature.match(head):
            return Container(demuxer)
    return None


def open_still(path: Path, container: Container, refusal: Refusal) -> Still:
    """Check the size of a picture, and that it can be decoded.

    Raises:
        MediaTooLarge, or `refusal`: it cannot be used; the message says why.
    """
    _check_header(path, container, refusal)
    fields = "frame=width,height:frame_side_data=rotation"
    printed, said = _probe(path, container, "-show_entries", fields)
    frames = printed.get("frames", [])
    if not frames or _is_cut_off(said):
        raise _undecodable(refusal, said)
    width, height = displayed_size(frames[0])
    return Still(width, height)


def make_video_of_still(path: Path, container: Container, target: Path) -> None:
    """Write a video of one frame, in RGB, that shows a picture.

    Raises:
        InvalidVideo, MediaTooLarge: it cannot be used; the message says why.
    """
    _check_header(path, container, InvalidVideo)
    share = f"min(1,{LONGEST_PX}/max(iw,ih))"
    size = ":".join(f"'max(2,round({side}*{share}))'" for side in ("iw", "ih"))
    graph = (
        # Where the picture is opaque, its pixels stay exactly as they are.
        "format=rgba,split[whole][behind];"
        "[behind]lutrgb=r=255:g=255:b=255:a=255[white];"
        f"[white][whole]overlay=format=rgb,format=rgb24,scale={size}:flags=lanczos+accurate_rnd"
    )
    with replacing(target) as temporary:
        command = ffmpeg(
            *local_input(path, container.demuxer),
            *("-filter_complex", graph, "-frames:v", "1", "-r", str(STILL_FPS), "-c:v", "png"),
            *("-f", "matroska", f"file:{temporary.resolve()}"),
        )
        done = run(command, ChildLimits(PICTURE_S, file_bytes=8 * LONGEST_PX * LONGEST_PX))
        if done.returncode != 0 or _is_cut_off(done.message):
            temporary.unlink(missing_ok=True)
            raise _undecodable(InvalidVideo, done.message)


def _check_header(path: Path, container: Container, refusal: Refusal) -> None:
    """Check the sides that a picture declares, before anything is decoded."""
    printed, said = _probe(path, container, "-show_entries", "stream=width,height")
    streams = printed.get("streams", [])
    if not streams or not streams[0].get("width"):
        raise _undecodable(refusal, said)
    width, height = int(streams[0]["width"]), int(streams[0]["height"])
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise MediaTooLarge(
            f"The picture is {width}x{height}; at most {MAX_SIDE_PX} pixels a side and "
            f"{MAX_PIXELS / 1e6:.0f} megapixels are accepted.",
            width=width,
            height=height,
        )
    if min(width, height) < 2:
        raise refusal(f"The picture is only {width}x{height}.", hint=HINT)


Rows = dict[str, list[dict[str, Any]]]


def _probe(path: Path, container: Container, *entries: str) -> tuple[Rows, str]:
    """Return what ffprobe prints about a picture, and what it complains about."""
    command = ffprobe(*entries, "-of", "json", *local_input(path, container.demuxer))
    done = run(command, ChildLimits(PICTURE_S))
    with contextlib.suppress(ValueError):
        return json.loads(done.stdout or b"{}"), done.message
    return {}, done.message


def _is_cut_off(said: str) -> bool:
    """Whether a decoder complained that the end is missing; the rest of the frame is grey then."""
    return "overread" in said or "chunk too big" in said


def _undecodable(refusal: Refusal, said: str) -> InvalidVideo | InvalidFile:
    if _is_cut_off(said):
        return refusal("The picture is cut off: its end is missing.", hint=WHOLE_FILE)
    why = f": {said}" if said else ""
    return refusal(f"The picture cannot be decoded{why}.", hint=HINT)
