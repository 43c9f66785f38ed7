"""What the header of a media file declares: its container, its streams and its lengths.

The first refusals happen here, before any frame or sample is decoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from musetalk_pipeline.errors import InvalidAudio, InvalidVideo, MediaTooLarge
from musetalk_pipeline.media.containers import HEAD_BYTES, WAV, Container, recognise, wav_length_s
from musetalk_pipeline.media.sandbox import ChildLimits, ffprobe, local_input, run
from musetalk_pipeline.options import MediaLimits

HEADER_S = 60.0  # guess: a header takes 0.1 s; the rest is for a machine under load

Refusal = type[InvalidVideo] | type[InvalidAudio]
WHOLE_FILE = "Make sure that the file was written and uploaded to its end, then send it again."


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A file that has passed the first checks.

    `start_s`, `duration_s`: as its header declares them, else 0. `streams`: ffprobe's fields of
    each stream, by ffprobe's names.
    """

    path: Path
    container: Container
    sha256: str
    size_bytes: int
    start_s: Fraction
    duration_s: float
    streams: tuple[dict[str, Any], ...]

    def input(self) -> list[str]:
        """Return ffmpeg's arguments that open this file."""
        return local_input(self.path, self.container.demuxer)


def admit(
    path: Path, limits: MediaLimits, refusal: Refusal, sha256: str | None = None
) -> MediaFile:
    """Check size, kind, streams and declared lengths of a file.

    `sha256`: the digest in hex, if it has been computed; otherwise it is computed here.

    Raises:
        MediaTooLarge, or `refusal`: it cannot be used; the message says why.
    """
    size, name = path.stat().st_size, _name(refusal)
    if size == 0:
        raise refusal(f"{name} is empty (0 bytes).", hint=WHOLE_FILE, size_bytes=0)
    if size > limits.max_bytes:
        raise MediaTooLarge(
            f"{name} has {size / 1e6:.0f} MB; at most {limits.max_bytes / 1e6:.0f} MB are "
            "accepted.",
            size_bytes=size,
            max_bytes=limits.max_bytes,
        )
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        container = recognise(head)
        if container is None:
            raise refusal(_what_instead(head, refusal))
        if size < limits.min_bytes and refusal is InvalidVideo:
            raise refusal(
                f"{name} has only {size} bytes; that is too small for a video.",
                hint=WHOLE_FILE,
                size_bytes=size,
            )
        file.seek(0)
        digest = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
    whole, streams = read_header(path, container, refusal)
    if len(streams) > limits.max_streams:
        raise MediaTooLarge(
            f"{name} holds {len(streams)} streams; at most {limits.max_streams} are accepted.",
            hint="Send a file with one picture and one sound track.",
            streams=len(streams),
        )
    duration = seconds(whole.get("duration"))
    if container is WAV:
        duration = max(duration, wav_length_s(head))
    longest = max([duration, *(seconds(stream.get("duration")) for stream in streams)])
    if longest > limits.max_duration_s:
        raise too_long(name, longest, limits)
    start = Fraction(whole.get("start_time") or 0)
    return MediaFile(path, container, digest, size, start, duration, tuple(streams))


def _name(refusal: Refusal) -> str:
    return f"The {refusal.default_input} file"


def _what_instead(head: bytes, refusal: Refusal) -> str:
    name, wanted = _name(refusal), "a video" if refusal is InvalidVideo else "sound"
    kinds: tuple[tuple[bool, str], ...] = (
        (b"#EXTM3U" in head[:64], "a playlist"),
        (head[:4] in (b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"Rar!", b"7z\xbc\xaf"), "an archive"),
        (head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] in (b"GIF", b"\xff\xd8\xff"), "an image"),
        (head[8:12] == b"WEBP" or head[:2] == b"BM", "an image"),
        (head[:5] == b"%PDF-", "a PDF document"),
        (head.lstrip()[:1] in (b"<", b"{", b"["), "a web page, an XML or a JSON document"),
        (b"\0" not in head[:512], "text"),
    )
    for is_so, kind in kinds:
        if is_so:
            return f"{name} is {kind}, not {wanted}. Playlists, images and documents are refused."
    return f"{name} is not {wanted} in a supported format (MP4, MOV, MKV, WAV, MP3, …)."


_FIELDS = (
    "format=nb_streams,start_time,duration"
    ":stream=index,codec_type,codec_name,width,height,pix_fmt,r_frame_rate,avg_frame_rate,time_base"
    ",start_time,duration,nb_frames,sample_rate,channels,color_range"
    ",color_space,color_primaries,color_transfer"
    ":stream_disposition=default,attached_pic,timed_thumbnails,still_image"
    ":stream_side_data=rotation"
)


def read_header(
    path: Path, container: Container, refusal: Refusal
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what ffprobe reports about the file as a whole and about each of its streams."""
    command = ffprobe("-show_entries", _FIELDS, "-of", "json")
    done = run([*command, *local_input(path, container.demuxer)], ChildLimits(HEADER_S))
    try:
        header: dict[str, Any] = json.loads(done.stdout or b"{}")
    except ValueError:
        header = {}
    if not header.get("streams"):
        said = done.message or "it is empty"
        raise refusal(f"{_name(refusal)} cannot be read: {said}.", hint=WHOLE_FILE, ffprobe=said)
    return header.get("format", {}), header["streams"]


def too_long(name: str, length_s: float, limits: MediaLimits) -> MediaTooLarge:
    """Return the refusal of a file that lasts `length_s` seconds; `name` begins the sentence."""
    return MediaTooLarge(
        f"{name} lasts {length_s:.0f} s; at most {limits.max_duration_s:.0f} s are accepted.",
        duration_s=round(length_s, 3),
        max_duration_s=limits.max_duration_s,
    )


def seconds(text: str | None) -> float:
    """Read a length as ffprobe prints it; 0 if it is absent or not a number."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(text or 0))
    return 0.0
