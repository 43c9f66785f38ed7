"""I420 pixels to BGR and back, with the source's own matrix and range.

`to_bgr` is swscale's plain conversion, as an ffmpeg `bgr24` pipe delivers it to the reference.
`write_bgr` is its inverse for the pixels that were changed; all others keep their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import cv2
import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import ColourTags, Picture
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.watch import Check, go_on

MAX_BIAS = 3  # measured: swscale 5.1 and 9.5 are 0 to 2 levels off, rounding adds one

_BT601 = (0.299, 0.114)  # also swscale's choice for a file without a tag
# Kr, Kb of each matrix (ITU-T H.273, table 4).
_WEIGHTS = {
    "bt709": (0.2126, 0.0722),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
    "bt2020nc": (0.2627, 0.0593),
    "bt2020c": (0.2627, 0.0593),
}
_SPACES = {
    "bt709": Colorspace.ITU709,
    "fcc": Colorspace.FCC,
    "smpte240m": Colorspace.SMPTE240M,
    "bt2020nc": Colorspace.BT2020,
    "bt2020c": Colorspace.BT2020,
}


def to_bgr(
    frame: NDArray[np.uint8], width: int, height: int, colour: ColourTags, box: Box | None = None
) -> NDArray[np.uint8]:
    """Return `(h, w, 3)` uint8 BGR of an I420 `frame: (height * 3 // 2, width)` or of its `box`.

    `box`: within the frame, all four numbers even.
    """
    box = box or Box(0, 0, width, height)
    region = VideoFrame.from_ndarray(_region(frame, width, height, box), format="yuv420p")
    bgr = region.reformat(
        format="bgr24",
        src_colorspace=_SPACES.get(colour.space, Colorspace.ITU601),
        interpolation=Interpolation.BICUBIC,
        src_color_range=_range(colour),
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    plane = bgr.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(box.height, plane.line_size)
    return np.ascontiguousarray(rows[:, : 3 * box.width]).reshape(box.height, box.width, 3)


def write_bgr(
    frame: NDArray[np.uint8],
    box: Box,
    bgr: NDArray[np.uint8],
    before: NDArray[np.uint8],
    colour: ColourTags,
) -> None:
    """Put `bgr: (h, w, 3)` into the even-aligned `box` of the I420 `frame`, in place.

    Only pixels that differ from `before`, which is what `to_bgr` gives for that box, are written,
    and only the colour samples of 2x2 blocks that hold such a pixel.
    """
    height, width = frame.shape[0] * 2 // 3, frame.shape[1]
    blue, green, red = cv2.split(cv2.bitwise_xor(bgr, before))
    changed = blue | green | red  # not 0 where any of the three differs
    if not changed.any():
        return
    rows = changed[0::2] | changed[1::2]
    blocks = rows[:, 0::2] | rows[:, 1::2]
    luma, chroma = _planes(frame, width, height, box)
    to_luma, to_chroma = _matrices(colour)
    values = _inverted(bgr, before, luma, to_luma)
    np.copyto(luma, values, where=changed != 0)
    # The mean of each 2x2 block: the inverse of to_bgr, which gives all four the same colour.
    size = (box.width // 2, box.height // 2)
    small = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    small_before = cv2.resize(before, size, interpolation=cv2.INTER_AREA)
    for plane, matrix in zip(chroma, to_chroma, strict=True):
        values = _inverted(small, small_before, plane, matrix[None])
        np.copyto(plane, values, where=blocks != 0)


def _inverted(
    bgr: NDArray[np.uint8],
    before: NDArray[np.uint8],
    plane: NDArray[np.uint8],
    matrix: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Return the plane's new values for `bgr`, if its present values give `before`.

    swscale's fast conversion to BGR is up to two levels too dark. The difference that remains after
    converting `before` back exactly is therefore added to `bgr` too, or a step would frame every
    paste. Larger differences come from colours that BGR cannot represent, so they are not added.
    """
    missing = cv2.subtract(plane, cv2.transform(before, matrix), dtype=cv2.CV_16S)
    np.clip(missing, -MAX_BIAS, MAX_BIAS, out=missing)
    values: NDArray[np.uint8] = cv2.add(cv2.transform(bgr, matrix), missing, dtype=cv2.CV_8U)
    return values


def _range(colour: ColourTags) -> ColorRange:
    return ColorRange.JPEG if colour.range == "pc" else ColorRange.MPEG


def _planes(
    frame: NDArray[np.uint8], width: int, height: int, box: Box
) -> tuple[NDArray[np.uint8], tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Return views of the box in Y, and in U and V."""
    if box.clipped(width, height) != box or any(v % 2 for v in (box.x0, box.y0, box.x1, box.y1)):
        raise ValueError(f"{box} is not an even-aligned part of {width}x{height}")
    colours = frame[height:].reshape(2, height // 2, width // 2)
    rows, columns = slice(box.y0 // 2, box.y1 // 2), slice(box.x0 // 2, box.x1 // 2)
    luma = frame[box.y0 : box.y1, box.x0 : box.x1]
    return luma, (colours[0, rows, columns], colours[1, rows, columns])


def _region(frame: NDArray[np.uint8], width: int, height: int, box: Box) -> NDArray[np.uint8]:
    """Return the box as an I420 frame of its own."""
    luma, chroma = _planes(frame, width, height, box)
    if (box.width, box.height) == (width, height):
        return frame
    region = np.empty((box.height * 3 // 2, box.width), np.uint8)
    region[: box.height] = luma
    region[box.height :].reshape(2, box.height // 2, box.width // 2)[:] = chroma
    return region


def _matrices(colour: ColourTags) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (1, 4) BGR1 to Y and (2, 4) BGR1 to U, V, 8 bits (ITU-T H.273, 38-51)."""
    red, blue = _WEIGHTS.get(colour.space, _BT601)
    luma = np.array([blue, 1 - red - blue, red])
    u = (np.array([1.0, 0, 0]) - luma) / (2 * (1 - blue))
    v = (np.array([0, 0, 1.0]) - luma) / (2 * (1 - red))
    is_full = colour.range == "pc"
    y_scale, y_offset, c_scale = (1.0, 0.0, 1.0) if is_full else (219 / 255, 16.0, 224 / 255)
    return (
        np.array([[*(luma * y_scale), y_offset]]),
        np.array([[*(u * c_scale), 128.0], [*(v * c_scale), 128.0]]),
    )


class BgrFrames(Sequence[NDArray[np.uint8]]):
    """Frames in the form that detectors take, converted on demand and not kept."""

    def __init__(
        self,
        frames: Sequence[NDArray[np.uint8]],
        picture: Picture,
        check: Check = go_on,
    ) -> None:
        self._frames = frames
        self._picture = picture
        self._check = check

    def __len__(self) -> int:
        return len(self._frames)

    @overload
    def __getitem__(self, place: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, place: slice) -> BgrFrames: ...
    def __getitem__(self, place: int | slice) -> NDArray[np.uint8] | BgrFrames:
        if isinstance(place, slice):
            return BgrFrames(self._frames[place], self._picture, self._check)
        self._check()
        picture = self._picture
        return to_bgr(self._frames[place], picture.width, picture.height, picture.colour)
