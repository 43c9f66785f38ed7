"""Clips of every kind that ffmpeg makes, and the frames that the reference would take from them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

TIMEOUT_S = 120
SCALER = "bicubic+accurate_rnd+full_chroma_inp"

PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2")
NTSC = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=30000/1001:d=2")
TONE = ("-f", "lavfi", "-i", "sine=d=2")
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", "15", "-bf", "3")
HEVC = (
    *("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p"),
    *("-x265-params", "log-level=error:keyint=15:bframes=3"),
)
AAC = ("-c:a", "aac")
UNEVEN = (
    *("-vf", "select='not(eq(mod(n,7),3))*not(between(n,30,39))'"),
    *("-fps_mode", "vfr"),
)
JITTER = (
    *("-vf", "select='not(eq(mod(n,7),3))',setpts='PTS+0.011*random(0)/TB'"),
    *("-fps_mode", "vfr", "-enc_time_base", "1/1000"),
)

# name: the arguments between ffmpeg and the name of the output.
CLIPS: dict[str, tuple[str, ...]] = {
    "bframes.mp4": (*PICTURE, *TONE, *H264, *AAC),
    "silent.mp4": (*PICTURE, *H264),
    "ntsc.mp4": (*NTSC, *TONE, *H264, *AAC),
    "open_gop.mp4": (*PICTURE, *H264, "-x264-params", "open-gop=1"),
    "intra_refresh.mp4": (*PICTURE, *H264, "-x264-params", "intra-refresh=1"),
    "fragments.mp4": (*PICTURE, *H264, "-movflags", "frag_keyframe+empty_moov"),
    "interlaced.mp4": (
        *(*PICTURE, *H264, "-flags", "+ilme+ildct", "-x264-params", "tff=1", "-vf", "setfield=tff"),
    ),
    "one_frame.mp4": (*PICTURE, *H264, "-frames:v", "1"),
    "uneven.mp4": (*PICTURE, *TONE, *UNEVEN, *H264, *AAC),
    "jitter.mkv": (*PICTURE, *TONE, *JITTER, *H264, *AAC),
    "two_pictures.mp4": (
        *(*PICTURE, "-f", "lavfi", "-i", "testsrc=s=32x32:r=10:d=2", *H264),
        *("-map", "0", "-map", "1"),
    ),
    "late_picture.mp4": ("-itsoffset", "0.7", *PICTURE, *TONE, *H264, *AAC),
    "late_sound.mp4": (*PICTURE, "-itsoffset", "0.7", *TONE, *H264, *AAC),
    "offset.mp4": (*PICTURE, *TONE, *H264, *AAC, "-output_ts_offset", "5"),
    "offset.mkv": (*PICTURE, *TONE, *H264, *AAC, "-output_ts_offset", "5"),
    "sixty.mp4": (*PICTURE, *H264, "-r", "60"),
    "film.mkv": (*PICTURE, *H264, "-r", "24000/1001"),
    "bframes.ts": (*PICTURE, *TONE, *H264, *AAC),
    "open_gop.ts": (*PICTURE, *TONE, *H264, *AAC, "-x264-params", "open-gop=1"),
    "camera.m2ts": (*PICTURE, *TONE, *H264, *AAC, "-f", "mpegts", "-mpegts_m2ts_mode", "1"),
    "hevc.ts": (*PICTURE, *TONE, *HEVC, *AAC),
    "hevc.mp4": (*PICTURE, *HEVC),
    "h264.flv": (*PICTURE, *TONE, *H264, *AAC),
    "h264.avi": (*PICTURE, *TONE, *H264, "-c:a", "mp3"),
    "mpeg4.avi": (*PICTURE, *TONE, "-c:v", "mpeg4", "-bf", "2", "-g", "15", "-c:a", "mp3"),
    "mpeg2.mpg": (*PICTURE, *TONE, "-c:v", "mpeg2video", "-bf", "2", "-c:a", "mp2"),
    "vp8.webm": (*PICTURE, *TONE, "-c:v", "libvpx", "-cpu-used", "8", "-c:a", "libopus"),
    "vp9.webm": (*PICTURE, "-c:v", "libvpx-vp9", "-cpu-used", "8", "-g", "15"),
    "theora.ogv": (*PICTURE, *TONE, "-c:v", "libtheora", "-c:a", "libvorbis"),
    "wmv.wmv": (*PICTURE, *TONE, "-c:v", "wmv2", "-c:a", "wmav2"),
    "jpegs.mov": (*PICTURE, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "full_range.mp4": (*PICTURE, *H264, "-pix_fmt", "yuvj420p"),
    "full_range.webm": (*(*PICTURE, "-c:v", "libvpx-vp9", "-cpu-used", "8", "-color_range", "pc"),),
    "ten_bits.mp4": (*PICTURE, *HEVC, "-pix_fmt", "yuv420p10le"),
    "full_colour.mp4": (*PICTURE, *H264, "-pix_fmt", "yuv444p"),
    "prores.mov": (*PICTURE, "-c:v", "prores", "-pix_fmt", "yuv422p10le"),
}


def ffmpeg(*arguments: str | Path, stdin: bytes | None = None) -> bytes:
    """Run ffmpeg; return what it wrote to standard output."""
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def make_clip(folder: Path, name: str) -> Path:
    """Return the clip of that name, made on first use."""
    path = folder / name
    if not path.exists():
        ffmpeg(*CLIPS[name], path)
    return path


def rotated(folder: Path, degrees: int) -> Path:
    """Return a clip that a player has to turn."""
    path = folder / f"rotated{degrees}.mp4"
    if not path.exists():
        upright = make_clip(folder, "bframes.mp4")
        ffmpeg("-i", upright, "-c", "copy", "-metadata:s:v", f"rotate={degrees}", path)
    return path


def reference_frames(path: Path, pixels: str = "yuv420p") -> list[NDArray[np.uint8]]:
    """Return the bytes of the numbered images that the reference's command would write, as YUV."""
    with TemporaryDirectory() as folder:
        command = ("-i", path, "-c:v", "rawvideo", "-pix_fmt", pixels, "-sws_flags", SCALER)
        ffmpeg(*command, "-f", "image2", "-start_number", "0", f"{folder}/%08d.yuv")
        files = sorted(Path(folder).iterdir())
        return [np.fromfile(file, np.uint8) for file in files]
