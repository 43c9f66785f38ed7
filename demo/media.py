"""The demo's own input, made from packaged material: a face that sways gently, and real speech.

The face is NASA's public-domain portrait of Eileen Collins, which the scikit-image wheel carries
as `skimage.data.astronaut()`. The speech is a LibriVox reading (public domain) from Debian's
pocketsphinx-testdata, else espeak-ng's voice. Both are kept as `.cache/demo/face.mp4` and
`.cache/demo/speech.wav`, which the examples of the documents use.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

FPS = 25
SIDE_PX = 720
SECONDS = 8
# Head and collar of the 512-pixel portrait, with room for the sway; found by looking.
CENTRE = (228.0, 152.0)
CROP_PX = 290.0

SPEECH = Path(
    "usr/share/pocketsphinx/test/data/librivox/sense_and_sensibility_01_austen_64kb-0870.wav"
)
SENTENCE = (
    "And Mister John Dashwood had then leisure to consider how much there might be prudently "
    "in his power to do for them."
)
ESPEAK_TIMEOUT_S = 60


class SpeechMissing(Exception):
    """Neither the recording nor espeak-ng is on this machine. Name a sound file instead."""


def demo_video(cache: Path) -> Path:
    """Return the path of the swaying portrait, made on the first call."""
    path = cache / "face.mp4"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.mp4")
        _encode(skimage.data.astronaut(), unfinished)
        unfinished.replace(path)  # whole or absent: an interrupted run leaves no half video
    return path


def sway(frame: int) -> NDArray[np.float64]:
    """Return the (2, 3) affine map from portrait pixels to the `SIDE_PX` frame at `frame`.

    Two slow swings of different length, so that the head never seems to tick: some 3 px of drift,
    1.3 degrees of tilt and 3 % of zoom. Guesses, tuned by looking.
    """
    turn = 2 * math.pi * frame / (FPS * SECONDS)
    zoom = SIDE_PX / CROP_PX * (1.03 - 0.03 * math.cos(turn))
    matrix = cv2.getRotationMatrix2D(CENTRE, 1.3 * math.sin(2 * turn), zoom)
    matrix[0, 2] += SIDE_PX / 2 - CENTRE[0] + zoom * 3.0 * math.sin(turn)
    matrix[1, 2] += SIDE_PX / 2 - CENTRE[1] + zoom * 1.5 * math.sin(3 * turn)
    return np.asarray(matrix)


def _encode(portrait: NDArray[np.uint8], path: Path) -> None:
    """Write `SECONDS` of the swaying `portrait` ((H, W, 3) uint8 RGB) as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = SIDE_PX, SIDE_PX, "yuv420p"
        for index in range(FPS * SECONDS):
            picture = cv2.warpAffine(
                portrait,
                sway(index),
                (SIDE_PX, SIDE_PX),
                flags=cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_REFLECT_101,
            )
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def demo_speech(cache: Path, roots: tuple[Path, ...]) -> Path:
    """Return the path of speech in `cache`: the recording under one of `roots`, else espeak-ng's.

    Raises:
        SpeechMissing: neither is there. Run with AUDIO=… instead.
    """
    path = cache / "speech.wav"
    recording = next((root / SPEECH for root in roots if (root / SPEECH).exists()), None)
    if recording is not None:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.wav")
        shutil.copyfile(recording, unfinished)
        unfinished.replace(path)
        return path
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        raise SpeechMissing(
            "no speech on this machine: run 'make run AUDIO=your-speech.wav', "
            "or install the package pocketsphinx-testdata or espeak-ng"
        )
    cache.mkdir(parents=True, exist_ok=True)
    subprocess.run([espeak, "-w", str(path), SENTENCE], check=True, timeout=ESPEAK_TIMEOUT_S)
    return path
