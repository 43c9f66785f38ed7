"""Clips with two people, made from the portraits that the scikit-image wheel carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Who = Literal["woman", "man"]
FPS = 25
SIZE = (480, 270)
HEIGHT = 170  # of a head, in pixels of the clip


@dataclass(frozen=True)
class Person:
    """Somebody in a frame, `x` and `y` being the corner of the head's picture."""

    who: Who
    x: int
    y: int = 50
    height: int = HEIGHT


@cache
def head(who: Who) -> Frame:
    """Return a head, (H, W, 3) uint8 BGR: an astronaut, or one of the faces of skimage's LFW."""
    if who == "woman":
        return np.ascontiguousarray(skimage.data.astronaut()[0:190, 130:310, ::-1])
    faces = np.load(Path(skimage.data.__file__).with_name("lfw_subset.npy"))
    face = (faces[8] * 255).astype(np.uint8)
    large = cv2.resize(face, (150, 150), interpolation=cv2.INTER_CUBIC)
    return cv2.cvtColor(cv2.copyMakeBorder(large, 20, 20, 10, 20, 1), cv2.COLOR_GRAY2BGR)


def scene(*people: Person) -> Frame:
    """Return a grey picture of SIZE with these people in it, BGR."""
    frame = np.full((SIZE[1], SIZE[0], 3), 110, np.uint8)
    for one in people:
        picture = head(one.who)
        width = one.height * picture.shape[1] // picture.shape[0]
        small = cv2.resize(picture, (width, one.height), interpolation=cv2.INTER_AREA)
        frame[one.y : one.y + one.height, one.x : one.x + width] = small
    return frame


def write(path: Path, frames: Sequence[Frame]) -> Path:
    """Encode frames of SIZE so finely that faces stay what they are."""
    options = {"preset": "veryfast", "crf": "12"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode())
    return path
