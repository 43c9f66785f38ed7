"""How fast the embedded default is on one core: landmarks, masks, audio, drawing, pasting.

    python benchmarks/warp.py [--frames 250] [--width 1280 --height 720]

The picture is skimage's astronaut in a frame of the size asked for, slightly moving, the sound a
buzz with syllables. Wall seconds say what a user waits on this machine now; CPU seconds are steady
where others use the machine too.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import project  # noqa: F401
import skimage.data
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Face, PreparedBlock, SpeechAudio
from musetalk_pipeline.boxes import Box, face_box, with_chin_margin
from musetalk_pipeline.engines.warp.engine import WarpAudioEncoder, WarpEngine
from musetalk_pipeline.faces.mesh import MeshDetector
from musetalk_pipeline.options import FaceOptions, MaskOptions, SpeechOptions
from musetalk_pipeline.pixels.blend import paste_face, soft_mask, unpack_mask
from musetalk_pipeline.pixels.crops import face_crop
from musetalk_pipeline.plan import SAMPLE_RATE, Block, Segment

Frame = NDArray[np.uint8]
FPS = Fraction(25)
FACE_HEIGHT = 0.45  # of the frame's height, forehead to chin


@contextmanager
def timed(stage: str, frames: int) -> Iterator[None]:
    """Print one line of the table when the block ends."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    speed, each = frames / cpu, 1000 * cpu / frames
    print(f"{stage:<22}{wall:>8.2f}{cpu:>8.2f}{each:>10.2f}{frames / wall:>12.0f}{speed:>12.0f}")


def moving_head(count: int, width: int, height: int) -> list[Frame]:
    """Return frames of the astronaut's head, which sways by a few pixels."""
    head = np.ascontiguousarray(skimage.data.astronaut()[0:240, 100:360, ::-1])
    scale = FACE_HEIGHT * height / 107  # her face is 107 pixels high
    frames = []
    for i in range(count):
        x = width / 2 - 125 * scale + 4 * np.sin(i / 9)
        y = height / 2 - 125 * scale + 3 * np.cos(i / 13)
        place = np.array([[scale, 0, x], [0, scale, y]])
        frames.append(cv2.warpAffine(head, place, (width, height), borderMode=cv2.BORDER_REPLICATE))
    return frames


def buzz(count: int, folder: Path) -> SpeechAudio:
    """Return a voice-like sound, as long as `count` frames, with four syllables a second."""
    seconds = np.arange(int(count / FPS * SAMPLE_RATE)) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 130 * k * seconds) / k for k in range(1, 20))
    samples = (0.1 * voice * np.sin(2 * np.pi * 2 * seconds) ** 2).astype("<f4")
    path = folder / "buzz.f32"
    path.write_bytes(samples.tobytes())
    digest = hashlib.sha256(samples.tobytes()).hexdigest()
    return SpeechAudio(path, path, digest, samples.nbytes, len(samples), float(seconds[-1]))


def find_faces(frames: list[Frame]) -> list[Face]:
    """Return a face for every frame, v1.5 boxes."""
    margin = FaceOptions().extra_margin
    faces = []
    for frame, marks in zip(frames, MeshDetector().detect(frames), strict=True):
        box = None if marks is None else face_box(marks.points)
        if marks is None or box is None:
            raise SystemExit("The detector missed the face of the benchmark's own picture.")
        height, width = frame.shape[:2]
        box = with_chin_margin(box, height, margin).clipped(width, height)
        faces.append(Face(marks.points, box, marks.score))
    return faces


def run(count: int, width: int, height: int, folder: Path) -> None:
    """Time every stage on the same `count` frames."""
    frames, audio = moving_head(count, width, height), buzz(count, folder)
    engine, segment = WarpEngine(), Segment(0, 0, count, 0, 0, 1)
    engine.warm_up()
    print(f"{count} frames of {width}x{height}, one thread")
    print(f"{'stage':<22}{'wall s':>8}{'CPU s':>8}{'CPU ms':>10}{'frames/s':>12}{'per CPU s':>12}")
    with timed("landmarks", count):
        faces = find_faces(frames)
    with timed("crops", count):
        crops = np.stack([face_crop(f, face.box) for f, face in zip(frames, faces, strict=True)])
    nothing = np.empty((0, 512, 512, 3), np.uint8)
    block = PreparedBlock(Block(0, 0, count), tuple(faces), crops, nothing)
    with timed("encode_audio", count):
        speech = WarpAudioEncoder().encode(audio, FPS, segment, SpeechOptions())
    with timed("drawing: mask + mouth", count):
        avatar = engine.encode(block, MaskOptions())
        drawn = engine.generate(avatar, speech, segment, SpeechOptions())
    whole = Box(0, 0, width, height)
    with timed("paste", count):
        for row, face in enumerate(faces):
            mask = soft_mask(unpack_mask(avatar.masks[row]), face.box, MaskOptions().blur)
            if mask is not None:
                paste_face(frames[row], whole, drawn.faces[row], face.box, mask)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(asked.frames, asked.width, asked.height, Path(folder))


if __name__ == "__main__":
    main()
