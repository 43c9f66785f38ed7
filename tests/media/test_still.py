"""Still pictures as videos of one frame: upright, white behind, of a size that can be shown."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_pipeline.errors import InvalidFile, InvalidVideo, MediaTooLarge, PipelineError
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.kinds import MediaFacts, describe_media
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.media.still import LONGEST_PX
from musetalk_pipeline.options import (
    EncodeOptions,
    FrameOptions,
    JobOptions,
    MediaLimits,
)
from musetalk_pipeline.pipeline import Tools, run
from musetalk_pipeline.pixels.picture import fit_picture
from tests.decoding import frames_of

LIMITS = MediaLimits()


@pytest.fixture(scope="module")
def face(clip) -> NDArray[np.uint8]:
    """A face, 320x240 BGR."""
    frame: NDArray[np.uint8] = frames_of(clip(frames=1))[0]
    return frame


def shown(path: Path, folder: Path) -> NDArray[np.uint8]:
    """Return the frame that a picture becomes, (H, W, 3) uint8 BGR."""
    source = probe_video(path, LIMITS, folder)
    assert (source.n_frames, source.fps) == (1, 25)
    picture = fit_picture(source, FrameOptions(), [])
    [i420] = read_frames(source, picture, 0, 1)
    return cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420)


def with_orientation(jpeg: bytes, value: int) -> bytes:
    """Add what a camera notes when it is held upright (EXIF orientation)."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHH", 1, 0x112, 3, 1, value, 0) + bytes(4)
    note = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_is_a_video_of_one_frame(suffix: str, face: Any, tmp_path: Path) -> None:
    path = tmp_path / f"face{suffix}"
    cv2.imwrite(str(path), face)
    frame = shown(path, tmp_path)
    assert frame.shape == face.shape
    assert np.abs(frame.astype(int) - cv2.imread(str(path))).mean() < 3
    assert describe_media(path, LIMITS) == MediaFacts("picture", None, 320, 240)


@pytest.mark.slow
def test_the_name_of_a_file_does_not_matter(face: Any, tmp_path: Path) -> None:
    path = tmp_path / "face.mp4"
    path.write_bytes(cv2.imencode(".png", face)[1].tobytes())
    assert shown(path, tmp_path).shape == face.shape


@pytest.mark.slow
def test_a_portrait_of_a_phone_is_upright(face: Any, tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    lying = cv2.rotate(face, cv2.ROTATE_90_COUNTERCLOCKWISE)
    path.write_bytes(with_orientation(cv2.imencode(".jpg", lying)[1].tobytes(), 6))
    assert describe_media(path, LIMITS) == MediaFacts("picture", None, 320, 240)
    frame = shown(path, tmp_path)
    assert np.abs(frame.astype(int) - face).mean() < 3


@pytest.mark.slow
def test_what_is_transparent_becomes_white(face: Any, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    alpha = np.full(face.shape[:2], 255, np.uint8)
    alpha[:, :100] = 0
    cv2.imwrite(str(path), np.dstack([face, alpha]))
    frame = shown(path, tmp_path)
    assert frame[:, :96].min() > 250
    assert np.abs(frame[:, 104:].astype(int) - face[:, 104:]).mean() < 3


@pytest.mark.slow
def test_a_large_picture_is_scaled_down(face: Any, tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    cv2.imwrite(str(path), cv2.resize(face, (4032, 3024)))
    assert describe_media(path, LIMITS) == MediaFacts("picture", None, 4032, 3024)
    frame = shown(path, tmp_path)
    assert frame.shape == (LONGEST_PX * 3 // 4, LONGEST_PX, 3)
    small = cv2.resize(frame, (320, 240), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - face).mean() < 3


def huge(folder: Path) -> bytes:
    """Return a PNG header that declares 12,000 pixels a side."""
    path = folder / "small.png"
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    content = path.read_bytes()
    head = b"IHDR" + struct.pack(">II", 12_000, 12_000) + content[24:29]
    return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]


@pytest.mark.slow
def test_pictures_that_cannot_be_used_are_refused(face: Any, tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", face)[1].tobytes()
    cases: list[tuple[bytes, type[PipelineError], str]] = [
        (huge(tmp_path), MediaTooLarge, "12000x12000"),
        (jpeg[:200] + bytes(1000), InvalidVideo, "cannot be decoded"),
        (jpeg[: len(jpeg) // 2], InvalidVideo, "cut off"),
        (cv2.imencode(".png", face)[1].tobytes()[:-5000], InvalidVideo, "cut off"),
        (b"\x89PNG\r\n\x1a\n" + bytes(2000), InvalidVideo, "cut off|decoded"),
        (b"GIF89a" + bytes(2000), InvalidVideo, "an image"),
    ]
    for content, kind, words in cases:
        path = tmp_path / "face.jpg"
        path.write_bytes(content)
        with pytest.raises(kind, match=words):
            probe_video(path, LIMITS, tmp_path)
        with pytest.raises(InvalidFile if kind is InvalidVideo else kind, match=words):
            describe_media(path, LIMITS)


@pytest.mark.slow
def test_a_picture_speaks(face: Any, speech: Any, tools: Tools, tmp_path: Path) -> None:
    """The mouth moves, and everything else stays."""
    path, out = tmp_path / "face.png", tmp_path / "out.mp4"
    cv2.imwrite(str(path), face)
    options = JobOptions(encode=EncodeOptions(crf=0, preset="ultrafast"))
    run(path, speech(1.0), out, options, tools)
    frames = frames_of(out).astype(int)
    assert len(frames) == 25
    moving = np.ptp(frames, axis=0).max(axis=2)
    assert moving[150:220, 110:210].max() > 20, "the mouth"
    assert moving[:60].max() == 0 and moving[:, :60].max() == 0
