"""Clips and speech for the benchmarks, made on the spot."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import soundfile

# The middle of the face in scikit-image's portrait (NASA, public domain) and its height, in pixels.
FACE_AT, FACE_PX = (225, 120), 160
FACE_SHARE = 0.35  # of the frame's height: 249 px at 720p, as in docs/reference.md §6


def make_clip(path: Path, width: int, height: int, frames: int, fps: int = 25) -> None:
    """Write H.264 of a swaying portrait with a little camera noise, so that it costs what footage
    costs to encode.
    """
    portrait = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])
    noise = np.random.default_rng(0).normal(0, 2.5, (height + 32, width + 32, 1))
    command = [
        *("ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "bgr24"),
        *("-s", f"{width}x{height}", "-r", str(fps), "-i", "-", "-c:v", "libx264"),
        *("-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p", str(path)),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
        assert encoder.stdin is not None
        for frame in range(frames):
            picture = _sway(portrait, width, height, frame)
            dx, dy = (frame * 7) % 32, (frame * 13) % 32
            grain = noise[dy : dy + height, dx : dx + width]
            encoder.stdin.write(np.clip(picture + grain, 0, 255).astype(np.uint8).tobytes())
        encoder.stdin.close()
    if encoder.returncode:
        raise RuntimeError(f"ffmpeg failed with {encoder.returncode}")


def make_speech(path: Path, seconds: float) -> None:
    """Write a buzz that opens and closes like syllables do."""
    rate = 16_000
    time_s = np.arange(round(seconds * rate)) / rate
    buzz = np.sign(np.sin(2 * np.pi * 120 * time_s)) * 0.3
    soundfile.write(path, buzz * np.clip(np.sin(2 * np.pi * 1.7 * time_s), 0, 1) ** 2, rate)


def _sway(portrait: np.ndarray, width: int, height: int, frame: int) -> np.ndarray:
    turn = 2 * math.pi * frame / 75
    scale = height * FACE_SHARE / FACE_PX * (1 + 0.02 * math.sin(turn))
    x = width * (0.5 + 0.02 * math.sin(turn)) - FACE_AT[0] * scale
    y = height * (0.45 + 0.01 * math.cos(turn)) - FACE_AT[1] * scale
    matrix = np.array([[scale, 0, x], [0, scale, y]])
    border = cv2.BORDER_REFLECT_101
    return np.asarray(cv2.warpAffine(portrait, matrix, (width, height), borderMode=border))
