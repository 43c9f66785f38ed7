"""Media that is broken, lying or malicious: the right error, a sentence, nothing left behind."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import tempfile
import wave
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest

from musetalk_pipeline.errors import (
    AudioTooShort,
    InvalidAudio,
    InvalidVideo,
    MediaError,
    MediaTooLarge,
    Stage,
)
from musetalk_pipeline.media.probe import open_audio, probe_video
from musetalk_pipeline.options import MediaLimits

LIMITS = replace(MediaLimits(), max_duration_s=20.0, max_fps=60.0, max_streams=4)
PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1")
TONE = ("-f", "lavfi", "-i", "sine=d=1")
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")


@cache
def made(suffix: str, *arguments: str) -> bytes:
    """Return what ffmpeg makes of the arguments, as a file of that kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"made{suffix}"
        command = ["ffmpeg", "-v", "error", "-y", *arguments, str(path)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
        return path.read_bytes()


def mp4() -> bytes:
    return made(".mp4", *PICTURE, *TONE, *H264, "-c:a", "aac", "-movflags", "+faststart")


def silent() -> bytes:
    return made(".mp4", *PICTURE, *H264, "-movflags", "+faststart")


def mkv() -> bytes:
    return made(".mkv", *PICTURE, *H264)


def patched(data: bytes, atom: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite `value` at `offset` behind the first MP4 atom of that name."""
    place = data.index(atom) + 4 + offset
    return data[:place] + value + data[place + len(value) :]


def atom(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + name + body


def wav(seconds: float = 1.0) -> bytes:
    file, rate = io.BytesIO(), 16_000
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        t = np.arange(int(seconds * rate))
        tone = (8000 * np.sin(t * 2 * np.pi * 300 / rate)).astype("<i2")
        out.writeframes(tone.tobytes())
    return file.getvalue()


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("clip.mp4", data)
    return file.getvalue()


def bomb() -> bytes:
    """A picture of 16384x12000, 200 megapixels, in 25 kB."""
    size = ("-f", "lavfi", "-i", "color=s=16384x12000:r=1:d=1", "-pix_fmt", "monob")
    return made(".mov", *size, "-c:v", "png", "-frames:v", "1")


def padded(text: str) -> bytes:
    return text.encode() + b"\n" * 2000


HLS = padded("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST")
CONCAT = padded("ffconcat version 1.0\nfile /etc/passwd\n")
SVG = padded('<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
DASH = padded('<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>')
SDP = padded("v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\nc=IN IP4 127.0.0.1")
SUBTITLES = padded("1\n00:00:00,000 --> 00:00:10,000\nhello\n")
NOISE = np.random.default_rng(7).integers(0, 256, 50_000, np.uint8).tobytes()

# Refused by their first bytes or their size, whichever way they are sent.
NOT_MEDIA: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\0",
    "zeros": bytes(50_000),
    "noise": b"\x01" + NOISE,
    "text": padded("hello, this is not a video"),
    "html error page": padded("<!DOCTYPE html><html><body>404</body></html>"),
    "json error": padded(json.dumps({"error": "AccessDenied"})),
    "xml error": padded("<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"),
    "hls playlist": HLS,
    "hls with byte order mark": b"\xef\xbb\xbf" + HLS,
    "hls behind blanks": b"   \n" + HLS,
    "concat script": CONCAT,
    "svg": SVG,
    "dash manifest": DASH,
    "sdp": SDP,
    "subtitles": SUBTITLES,
    "ass subtitles": padded("[Script Info]\nTitle: x\n[Events]\nDialogue: 0,0:0:0,0:0:9,,x"),
    "webvtt": padded("WEBVTT\n\n00:00.000 --> 00:10.000\nhello"),
    "pls playlist": padded("[playlist]\nFile1=http://127.0.0.1/x"),
    "ffmetadata": padded(";FFMETADATA1\ntitle=x"),
    "png": b"\x89PNG\r\n\x1a\n" + NOISE,
    "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + NOISE,
    "gif": b"GIF89a" + NOISE,
    "webp": b"RIFF\x00\x10\x00\x00WEBPVP8 " + NOISE,
    "bmp": b"BM" + NOISE,
    "pdf": b"%PDF-1.7\n" + NOISE,
    "zip": zipped(NOISE),
    "zip with an mp4 behind": zipped(b"x") + NOISE,
    "gzip": b"\x1f\x8b\x08\x00" + NOISE,
    "elf": b"\x7fELF" + NOISE,
    "shell script": padded("#!/bin/sh\nrm -rf /"),
    "python pickle": b"\x80\x04\x95" + NOISE,
    "dv": b"\x1f\x07\x00\x3f" + NOISE,
    "raw h264": b"\0\0\0\x01\x67\x42" + NOISE,
    "midi": b"MThd\0\0\0\x06" + NOISE,
    "y4m": b"YUV4MPEG2 W16 H16 F25:1\nFRAME\n" + NOISE,
}

# Looks right at first.
BAD_VIDEO: dict[str, tuple[Callable[[], bytes], type[MediaError]]] = {
    "tiny ftyp": (lambda: atom(b"ftyp", b"isom\0\0\0\0"), InvalidVideo),
    "ftyp and noise": (lambda: atom(b"ftyp", b"isom\0\0\0\0") + NOISE, InvalidVideo),
    "matroska magic and noise": (lambda: b"\x1a\x45\xdf\xa3" + NOISE, InvalidVideo),
    "avi magic and noise": (lambda: b"RIFF\0\0\1\0AVI LIST" + NOISE, InvalidVideo),
    "flv magic and noise": (lambda: b"FLV\x01\x05\0\0\0\x09" + NOISE, InvalidVideo),
    "transport magic and noise": (
        lambda: b"".join(b"\x47" + NOISE[i : i + 187] for i in range(0, 40_000, 187)),
        InvalidVideo,
    ),
    "ogg magic and noise": (lambda: b"OggS" + NOISE, InvalidVideo),
    "asf magic and noise": (lambda: b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + NOISE, InvalidVideo),
    "program stream magic and noise": (lambda: b"\0\0\x01\xba" + NOISE, InvalidVideo),
    "atom larger than the file": (lambda: b"\xff\xff\xff\xf0ftyp" + NOISE, InvalidVideo),
    "atom of negative size": (lambda: b"\0\0\0\x01ftyp" + b"\xff" * 8 + NOISE, InvalidVideo),
    "atoms nested 1000 deep": (lambda: _nested(1000), InvalidVideo),
    "mp4 without its index": (lambda: mp4()[: len(mp4()) // 3], InvalidVideo),
    "mp4 cut in half": (lambda: mp4()[: len(mp4()) // 2], InvalidVideo),
    "mp4 lacking its last bytes": (lambda: silent()[:-100], InvalidVideo),
    "matroska cut in half": (lambda: mkv()[: len(mkv()) // 2], InvalidVideo),
    "wav": (wav, InvalidVideo),
    "mp3": (lambda: made(".mp3", *TONE), InvalidVideo),
    "sound only mp4": (lambda: made(".m4a", *TONE), InvalidVideo),
    "mp3 with a cover": (lambda: _mp3_with_cover(), InvalidVideo),
    "sound with a cover in mp4": (lambda: _m4a_with_cover(), InvalidVideo),
    "no frames": (
        lambda: _without_frames(),
        InvalidVideo,
    ),
    "codec that is refused": (
        lambda: made(".mkv", *PICTURE, "-c:v", "snow", "-strict", "-2"),
        InvalidVideo,
    ),
    "an hour between two frames": (
        lambda: patched(silent(), b"stts", 12, struct.pack(">I", 3600 * 12_800)),
        InvalidVideo,
    ),
    "one frame in ten hours": (
        lambda: made(".mkv", *PICTURE, *H264, "-vf", "setpts=PTS*25*36000", "-r", "1/36000"),
        MediaTooLarge,
    ),
    "ten hours declared in matroska": (
        lambda: mkv().replace(
            b"\x44\x89\x88" + struct.pack(">d", 1000.0), b"\x44\x89\x88" + struct.pack(">d", 36e6)
        ),
        MediaTooLarge,
    ),
    "ten hours declared for the whole": (
        lambda: patched(mp4(), b"mvhd", 16, struct.pack(">I", 36_000_000)),
        MediaTooLarge,
    ),
    "16k wide": (
        lambda: made(".mp4", "-f", "lavfi", "-i", "color=s=16384x64:r=2:d=1", *H264),
        MediaTooLarge,
    ),
    "16k in truth": (bomb, MediaTooLarge),
    "1000 frames a second": (
        lambda: made(".mp4", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=1000:d=0.2", *H264),
        MediaTooLarge,
    ),
    "six streams": (
        lambda: made(".mkv", *PICTURE, *H264, *("-map", "0") * 6),
        MediaTooLarge,
    ),
    "sixty seconds too long": (
        lambda: made(".mp4", "-f", "lavfi", "-i", "color=s=64x48:r=2:d=80", *H264),
        MediaTooLarge,
    ),
    "all samples outside the file": (lambda: _far_samples(), InvalidVideo),
}

BAD_AUDIO: dict[str, tuple[Callable[[], bytes], type[MediaError]]] = {
    "79 ms": (lambda: wav(0.079), AudioTooShort),
    "10 ms": (lambda: wav(0.01), AudioTooShort),
    "no samples": (lambda: wav(0), InvalidAudio),
    "wav cut in half": (lambda: wav(4)[: len(wav(4)) // 2], InvalidAudio),
    "wav magic and noise": (lambda: b"RIFF\0\0\1\0WAVE" + NOISE, InvalidAudio),
    "flac magic and noise": (lambda: b"fLaC" + NOISE, InvalidAudio),
    "ogg magic and noise": (lambda: b"OggS" + NOISE, InvalidAudio),
    "aiff magic and noise": (lambda: b"FORM\0\0\1\0AIFF" + NOISE, InvalidAudio),
    "caf magic and noise": (lambda: b"caff\x00\x01" + NOISE, InvalidAudio),
    "silent video": (lambda: made(".mp4", *PICTURE, *H264), InvalidAudio),
    "rate of 7 Hz": (lambda: patched(wav(), b"fmt ", 8, struct.pack("<I", 7)), MediaError),
    "rate of 2 GHz": (lambda: patched(wav(), b"fmt ", 8, struct.pack("<I", 1 << 31)), MediaError),
    "no channels": (lambda: patched(wav(), b"fmt ", 6, struct.pack("<H", 0)), InvalidAudio),
    "65535 channels": (lambda: patched(wav(), b"fmt ", 6, struct.pack("<H", 65_535)), InvalidAudio),
    "unknown codec": (lambda: patched(wav(), b"fmt ", 4, struct.pack("<H", 0x7777)), InvalidAudio),
    "half a minute": (lambda: wav(30), MediaTooLarge),
    "hour declared": (
        lambda: patched(wav(), b"data", 0, struct.pack("<I", 3600 * 32_000)),
        MediaError,
    ),
    "sound cut in mp4": (lambda: made(".m4a", *TONE)[:3000], InvalidAudio),
}


def _nested(depth: int) -> bytes:
    body = b""
    for _ in range(depth):
        body = atom(b"moov", body)
    return atom(b"ftyp", b"isom\0\0\0\0") + body


def _cover() -> bytes:
    return made(".png", "-f", "lavfi", "-i", "testsrc2=s=64x64", "-frames:v", "1")


def _with_cover(suffix: str, *arguments: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        cover = Path(folder) / "cover.png"
        cover.write_bytes(_cover())
        both = (*TONE, "-i", str(cover), "-map", "0", "-map", "1", "-c:v", "copy")
        return made(suffix, *both, *arguments, "-disposition:v", "attached_pic")


@cache
def _mp3_with_cover() -> bytes:
    return _with_cover(".mp3")


@cache
def _m4a_with_cover() -> bytes:
    return _with_cover(".mp4", "-c:a", "aac")


def _without_frames() -> bytes:
    """A fragmented MP4 whose first fragment never came, filled up with an empty atom."""
    data = made(".mp4", *PICTURE, *H264, "-movflags", "frag_keyframe+empty_moov")
    return data[: data.index(b"moof") - 4] + atom(b"free", bytes(2000))


def _far_samples() -> bytes:
    data = mp4()
    place = data.index(b"stco") + 12
    return data[:place] + struct.pack(">I", 0x7FFFFFFF) + data[place + 4 :]


@pytest.fixture
def nothing_left(tmp_path: Path) -> Callable[[], None]:
    """Return a check that there is no child and no file but the input."""
    before = set(psutil.Process().children(recursive=True))

    def check() -> None:
        assert not set(psutil.Process().children(recursive=True)) - before
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["input"]

    return check


def refusal(tmp_path: Path, data: bytes, wanted: str) -> MediaError:
    path = tmp_path / "input"
    path.write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(MediaError) as caught:
        if wanted == "video":
            probe_video(path, LIMITS, tmp_path / "out")
        else:
            open_audio(path, tmp_path / "out", LIMITS)
    error = caught.value
    assert error.stage is Stage.VALIDATION
    # Mend 2.6: which of the two files it is, and what to do.
    assert error.input == wanted and error.hint and error.hint.endswith(".")
    assert error.message.endswith(".") and len(error.message) < 500
    for secret in (str(tmp_path), "/etc/", "input'"):
        assert all(secret not in str(said) for said in (error.message, *error.details.values()))
    return error


@pytest.mark.parametrize("wanted", ["video", "audio"])
@pytest.mark.parametrize("name", NOT_MEDIA)
def test_what_is_no_media_is_refused_without_a_child(
    name: str, wanted: str, tmp_path: Path, nothing_left: Callable[[], None]
) -> None:
    error = refusal(tmp_path, NOT_MEDIA[name], wanted)
    assert type(error) is (InvalidVideo if wanted == "video" else InvalidAudio)
    nothing_left()


@pytest.mark.parametrize("name", BAD_VIDEO)
def test_bad_videos(name: str, tmp_path: Path, nothing_left: Callable[[], None]) -> None:
    make, expected = BAD_VIDEO[name]
    error = refusal(tmp_path, make(), "video")
    assert type(error) is expected, error
    nothing_left()


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_bad_sounds(name: str, tmp_path: Path, nothing_left: Callable[[], None]) -> None:
    make, expected = BAD_AUDIO[name]
    error = refusal(tmp_path, make(), "audio")
    assert isinstance(error, expected), error
    nothing_left()


@pytest.mark.parametrize("wanted", ["video", "audio"])
def test_the_details_carry_what_ffprobe_said(tmp_path: Path, wanted: str) -> None:
    """Mend 1.17: `details` were empty where ffprobe had said why."""
    data = made(".mp4", *PICTURE, *TONE, *H264, "-c:a", "aac")  # its index comes last
    error = refusal(tmp_path, data[: data.index(b"moov")], wanted)
    assert "moov atom not found" in str(error.details["ffprobe"])
    assert len(str(error.details["ffprobe"])) <= 300


def test_swapped_files_are_named(tmp_path: Path) -> None:
    """Mend 2.6: "The file holds no sound." did not say which of the two."""
    assert "The audio file holds no sound" in refusal(tmp_path, silent(), "audio").message


def test_an_error_crosses_processes_with_all_that_it_says() -> None:
    """Mend 1.17: what was done before a refusal is known where the job is driven."""
    error = AudioTooShort("Too short.", duration_s=0.02)
    error.stage_seconds = {"download": 0.5}
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is AudioTooShort and copy.stage_seconds == {"download": 0.5}
    assert (copy.input, copy.hint, copy.details) == ("audio", error.hint, {"duration_s": 0.02})


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "input"
    with path.open("wb") as file:
        file.write(mp4())
        file.truncate(3 << 30)  # sparse: reading it would take long
    with pytest.raises(MediaTooLarge, match="MB"):
        probe_video(path, LIMITS)
    with pytest.raises(MediaTooLarge, match="MB"):
        open_audio(path, tmp_path, LIMITS)


def test_an_mp4_with_an_archive_behind_it_is_an_mp4(tmp_path: Path) -> None:
    path = tmp_path / "polyglot"
    path.write_bytes(mp4() + zipped(NOISE))
    assert probe_video(path, LIMITS).n_frames == 25


def test_an_external_reference_in_an_mp4_is_not_followed(tmp_path: Path) -> None:
    """A data reference that is not "in this file" names a path; nothing may open it."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(mp4())
    data = mp4()
    entry = data.index(b"url ", data.index(b"dref"))
    path = tmp_path / "reference.mp4"
    path.write_bytes(data[: entry + 7] + b"\x00" + data[entry + 8 :])  # flag: elsewhere
    source = probe_video(path, LIMITS)
    assert source.n_frames == 25  # the samples still come from the file itself


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path: Path) -> None:
    for name in ("http:127.0.0.1", "concat:a|b", "-i", "pipe:0", "a b;c'd\"e%08d", "ü\n.mp4"):
        path = tmp_path / name
        path.write_bytes(mp4())
        assert probe_video(path, LIMITS).n_frames == 25, name
