"""What the header of a media file declares: its container, its streams and its lengths.

The first refusals happen here, before any frame or sample is decoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from musetalk_pipeline.errors import InvalidAudio, InvalidFile, InvalidVideo, MediaTooLarge
from musetalk_pipeline.media.containers import (
    HEAD_BYTES,
    WAV,
    Container,
    plain_wav,
    recognise,
    wav_length_s,
)
from musetalk_pipeline.media.sandbox import Child, ChildLimits, ffprobe, local_input, run
from musetalk_pipeline.options import MediaLimits

HEADER_S = 60.0  # guess: a header takes 0.1 s; the rest is for a machine under load

PACKETS_BYTES = 2 << 20  # of what ffprobe prints; about three minutes of picture and sound

Refusal = type[InvalidVideo] | type[InvalidAudio] | type[InvalidFile]
WHOLE_FILE = "Make sure that the file was written and uploaded to its end, then send it again."


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A file that has passed the first checks.

    `start_s`, `duration_s`: as its header declares them, else 0. `streams`: ffprobe's fields of
    each stream, by ffprobe's names. `packets`: the same of each packet of all streams; None if they
    have not been read. `complaint`: ffprobe's about the packets, empty if it had none.
    """

    path: Path
    container: Container
    sha256: str
    size_bytes: int
    start_s: Fraction
    duration_s: float
    streams: tuple[dict[str, Any], ...]
    packets: tuple[dict[str, Any], ...] | None = None
    complaint: str = ""

    def input(self) -> list[str]:
        """Return ffmpeg's arguments that open this file."""
        return local_input(self.path, self.container.demuxer)


def admit(
    path: Path,
    limits: MediaLimits,
    refusal: Refusal,
    sha256: str | None = None,
    *,
    with_packets: bool = False,
) -> MediaFile:
    """Check size, kind, streams and declared lengths of a file.

    `sha256`: the digest in hex, if it has been computed; otherwise it is computed here.
    `with_packets`: read them too, if they are not too many to be held in memory.

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
    header = _with_packets(path, container, limits) if with_packets else None
    if header is None and (sound := plain_wav(head, size)) is not None:
        header = Header({"duration": sound["duration"]}, [sound])
    header = header or read_header(path, container, refusal)
    whole, streams = header.whole, header.streams
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
    found = header.packets, header.complaint
    return MediaFile(path, container, digest, size, start, duration, tuple(streams), *found)


def _name(refusal: Refusal) -> str:
    return f"The {refusal.default_input} file" if refusal.default_input else "The file"


_WANTED: Mapping[Refusal, str] = {
    InvalidVideo: "a video",
    InvalidAudio: "sound",
    InvalidFile: "a video, sound or a picture in JPEG, PNG or WebP",
}


def _what_instead(head: bytes, refusal: Refusal) -> str:
    name, wanted = _name(refusal), _WANTED[refusal]
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


PACKET_FIELDS = "packet=pts,duration,flags"


@dataclass(frozen=True, slots=True)
class Header:
    """What ffprobe reports about a file as a whole, about each of its streams, and, if that was
    asked for, about each packet.
    """

    whole: dict[str, Any]
    streams: list[dict[str, Any]]
    packets: tuple[dict[str, Any], ...] | None = None
    complaint: str = ""


def read_header(path: Path, container: Container, refusal: Refusal) -> Header:
    """Return what ffprobe reports about a file.

    Raises:
        refusal: ffprobe cannot read it.
    """
    command = ffprobe("-show_entries", _FIELDS, "-of", "json")
    done = run([*command, *local_input(path, container.demuxer)], ChildLimits(HEADER_S))
    header = _parsed(done.stdout)
    if not header.get("streams"):
        said = done.message or "it is empty"
        raise refusal(f"{_name(refusal)} cannot be read: {said}.", hint=WHOLE_FILE, ffprobe=said)
    return Header(header.get("format", {}), header["streams"])


def _with_packets(path: Path, container: Container, limits: MediaLimits) -> Header | None:
    """Return what ffprobe reports about a file and its packets, by one process instead of two.

    Most of what a process costs is the loading of ffmpeg's libraries. None if there are too many
    packets, or the file cannot be read.
    """
    entries = f"{PACKET_FIELDS},stream_index:{_FIELDS}"
    command = ffprobe("-show_entries", entries, "-of", "json=compact=1")
    printed = bytearray()
    limit = ChildLimits(HEADER_S + limits.max_duration_s)
    with Child([*command, *local_input(path, container.demuxer)], limit) as child:
        while part := child.read():
            printed += part
            if len(printed) > PACKETS_BYTES:
                return None
        child.wait()
        complaint = child.message
    header = _parsed(printed)
    if not header.get("streams"):
        return None
    packets = tuple(header.get("packets", ()))
    return Header(header.get("format", {}), header["streams"], packets, complaint)


def _parsed(printed: bytes | bytearray) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        header: dict[str, Any] = json.loads(printed or b"{}")
        return header
    return {}


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
