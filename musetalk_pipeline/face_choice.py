"""Whose mouth is redrawn: the choice of a face, and how it is written on a command line.

    largest              the most prominent face of each frame
    all                  every face that stands out
    FaceAtPoint          the face at a point of one frame, followed through the video
    FaceAtBox            the face in a box of one frame, followed through the video

Places are pixels of the source as it is displayed, its rotation applied. Frames count from 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from musetalk_pipeline.boxes import Box

MOST_FACES = 8  # of one frame that are told apart
MOST_DRAWN = 4  # of one frame that are redrawn, with `all`: bounds the work and memory of a block


@dataclass(frozen=True, slots=True)
class FaceAtPoint:
    """The face at a point of one frame. `point`: x, y in pixels of the displayed source."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    point: tuple[float, float]
    frame: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be a place. Raises: ValueError."""
        _check(self.point, self.frame)

    @property
    def place(self) -> Box:
        """The pixel."""
        x, y = map(math.floor, self.point)
        return Box(x, y, x + 1, y + 1)

    def __str__(self) -> str:
        """Return the words for a sentence."""
        return f"at the point {_numbers(self.point)} of frame {self.frame}"


@dataclass(frozen=True, slots=True)
class FaceAtBox:
    """The face in a box of one frame. `box`: x, y, width, height in pixels of the displayed
    source.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    box: tuple[float, float, float, float]
    frame: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be a place. Raises: ValueError."""
        _check(self.box, self.frame)
        if min(self.box[2:]) < 1:
            raise ValueError("a box is at least one pixel wide and high")

    @property
    def place(self) -> Box:
        """The box, in whole pixels."""
        x, y, width, height = self.box
        return Box(math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height))

    def __str__(self) -> str:
        """Return the words for a sentence."""
        return f"in the box {_numbers(self.box)} of frame {self.frame}"


FacePlace: TypeAlias = FaceAtPoint | FaceAtBox
FaceChoice: TypeAlias = Literal["largest", "all"] | FaceAtPoint | FaceAtBox


def read_face(text: str) -> FaceChoice:
    """Return the choice that a command line names: `largest`, `all`, `point:X,Y@N` or
    `box:X,Y,W,H@N`; without `@N`, the frame is 0.

    Raises:
        ValueError: it is none of them.
    """
    if text in ("largest", "all"):
        return "all" if text == "all" else "largest"
    kind, _, place = text.partition(":")
    numbers, _, frame = place.partition("@")
    try:
        at = [float(number) for number in numbers.split(",")]
        number = int(frame or 0)
    except ValueError:
        at, number = [], 0
    if kind == "point" and len(at) == 2:
        return FaceAtPoint((at[0], at[1]), number)
    if kind == "box" and len(at) == 4:
        return FaceAtBox((at[0], at[1], at[2], at[3]), number)
    raise ValueError(
        f"{text!r} is not understood: use largest, all, point:X,Y@FRAME or box:X,Y,W,H@FRAME"
    )


def plain(choice: FaceChoice) -> Any:
    """Return the choice as JSON can hold it."""
    return choice if isinstance(choice, str) else asdict(choice)


def _check(numbers: tuple[float, ...], frame: int) -> None:
    # The bound keeps the arithmetic on pixels exact; no picture is that large.
    if not all(math.isfinite(number) and abs(number) < 1e6 for number in numbers):
        raise ValueError("a place is given in pixels of the picture")
    if frame < 0:
        raise ValueError("frames count from 0")


def _numbers(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
