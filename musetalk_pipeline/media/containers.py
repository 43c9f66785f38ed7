"""Which demuxer a file gets, decided by its first bytes alone; pure.

The demuxer is then forced, so ffmpeg guesses nothing. Playlists (HLS, DASH, concat, SDP),
subtitles, images and everything else without an entry here never reach a parser. The first bytes
of a polyglot file decide: an MP4 followed by a ZIP archive is an MP4, and nothing later reads it in
any other way; a ZIP archive followed by an MP4 is refused.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

HEAD_BYTES = 4096
TS_PACKET = 188


@dataclass(frozen=True, slots=True)
class Container:
    """`demuxer`: ffmpeg's name. `is_exact`: seeks land on key frames and times are in an index.

    `declares_length`: the header states the length, so a shorter file has been cut off.
    `starts_with_picture`: ffmpeg counts frames from the first picture; otherwise, from the
    beginning of whichever stream comes first.
    """

    demuxer: str
    is_exact: bool = False
    declares_length: bool = False
    starts_with_picture: bool = False


MOV = Container("mov,mp4,m4a,3gp,3g2,mj2", is_exact=True, declares_length=True)
MATROSKA = Container("matroska,webm", is_exact=True, declares_length=True)
WAV = Container("wav", declares_length=True)

_MOV_ATOMS = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}

_SIGNATURES: tuple[tuple[re.Pattern[bytes], Container], ...] = (
    (re.compile(rb"\x1a\x45\xdf\xa3"), MATROSKA),
    (re.compile(rb"RIFF....AVI ", re.S), Container("avi", declares_length=True)),
    (re.compile(rb"(?:RIFF|RF64)....WAVE", re.S), WAV),
    (re.compile(rb"riff\x2e\x91\xcf\x11"), Container("w64", declares_length=True)),
    (re.compile(rb"FLV\x01"), Container("flv", declares_length=True)),
    (re.compile(rb"\x00\x00\x01\xba"), Container("mpeg", starts_with_picture=True)),
    (re.compile(rb"OggS"), Container("ogg")),
    (re.compile(rb"fLaC"), Container("flac", declares_length=True)),
    (re.compile(rb"FORM....AIF[FC]", re.S), Container("aiff", declares_length=True)),
    (re.compile(rb"caff\x00\x01"), Container("caf", declares_length=True)),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), Container("asf", declares_length=True)),
    (re.compile(rb"#!AMR"), Container("amr")),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), Container("aac")),
    (re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]"), Container("mp3")),
)


def recognise(head: bytes) -> Container | None:
    """Return the container that a file's first `HEAD_BYTES` identify; None if unsupported."""
    if head[4:8] in _MOV_ATOMS:
        return MOV
    if head.startswith(b"ID3") and len(head) >= 10:
        return _behind_id3(head)
    for signature, container in _SIGNATURES:
        if signature.match(head):
            return container
    for start in (0, 4):  # plain, and the 192-byte packets of cameras and Blu-ray
        step = TS_PACKET + start
        marks = head[start : start + 8 * step : step]
        if len(marks) >= 5 and set(marks) == {0x47}:
            return Container("mpegts", starts_with_picture=True)
    return None


def _behind_id3(head: bytes) -> Container:
    # ID3v2's size is four bytes of seven bits each; what follows the tag is the real stream.
    size = sum(
        (byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
    )
    following = head[10 + size : 14 + size]
    for signature, container in _SIGNATURES:
        if following and signature.match(following) and container.demuxer in {"aac", "flac"}:
            return container
    return Container("mp3")


def plain_wav(head: bytes, size_bytes: int) -> dict[str, Any] | None:
    """Return ffprobe's fields of the sound in a complete WAV file of 16 bits and one channel, which
    is what most speech comes in; None for any other file.

    Reading it here saves a process. Two channels may carry compressed sound, which only ffprobe
    recognises.
    """
    if head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt " or head[36:40] != b"data":
        return None
    fmt_size, kind, channels, rate, bytes_per_s, align, bits = struct.unpack(
        "<IHHIIHH", head[16:36]
    )
    data_bytes = int.from_bytes(head[40:44], "little")
    is_plain = (fmt_size, kind, channels, align, bits) == (16, 1, 1, 2, 16)
    if not is_plain or not rate or bytes_per_s != 2 * rate or not 0 < data_bytes <= size_bytes - 44:
        return None
    return {
        "index": 0,
        "codec_type": "audio",
        "codec_name": "pcm_s16le",
        "sample_rate": str(rate),
        "channels": 1,
        "duration": f"{data_bytes / bytes_per_s:.6f}",
    }


def wav_length_s(head: bytes) -> float:
    """Return the length that a WAV header declares, in seconds; 0 if it declares none.

    A recording that was streamed declares 0 or the largest number. ffprobe reports what the file
    really holds instead.
    """
    bytes_per_s, place = 0, 12
    while place + 8 <= len(head):
        name, size = head[place : place + 4], int.from_bytes(head[place + 4 : place + 8], "little")
        if name == b"fmt ":
            bytes_per_s = int.from_bytes(head[place + 16 : place + 20], "little")
        if name == b"data":
            is_known = bytes_per_s > 0 and size < 0xFFFFFFFF - 4096
            return size / bytes_per_s if is_known else 0.0
        place += 8 + size + size % 2
    return 0.0
