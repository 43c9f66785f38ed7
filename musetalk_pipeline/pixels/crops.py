"""The parts of a frame that the networks receive: the face, and the larger square to parse.

Bit-equal to the reference (docs/reference.md §1.3, §1.8), which resizes the face with OpenCV and
the parser's picture with Pillow, because their results differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from musetalk_pipeline.artifacts import Face, Picture, in_rows
from musetalk_pipeline.boxes import Box, crop_box
from musetalk_pipeline.pixels.colour import to_bgr

FACE_SIDE = 256  # the side of the VAE's picture
PARSE_SIDE = 512  # the side of the parser's picture


def face_crop(frame: NDArray[np.uint8], face: Box) -> NDArray[np.uint8]:
    """Return the face of `frame: (H, W, 3) uint8 BGR` as (256, 256, 3) uint8 BGR.

    The part of `face` within the frame is stretched to 256, each side by itself. Pasting reverses
    that, except for a face beyond the right or bottom edge, which stays stretched (`edges`).
    """
    part = frame[face.y0 : face.y1, face.x0 : face.x1]
    size = (FACE_SIDE, FACE_SIDE)
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_LANCZOS4), dtype=np.uint8)


def parse_input(frame: NDArray[np.uint8], face: Box) -> NDArray[np.uint8]:
    """Return the crop box of `face` as (512, 512, 3) uint8 RGB, black outside the frame."""
    region = cv2.cvtColor(_cut(frame, crop_box(face)), cv2.COLOR_BGR2RGB)
    if len(region) <= PARSE_SIDE:
        return np.asarray(cv2.transpose(_widened(cv2.transpose(_widened(region)))), np.uint8)
    small = Image.fromarray(region).resize((PARSE_SIDE, PARSE_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.uint8)


def _widened(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture of at most 512 columns with 512 columns, as Pillow's bilinear makes them.

    This takes a third of Pillow's time and is bit-equal for a single direction: with 512 = 2^9
    columns all weights are multiples of 1/1024, which OpenCV's 11-bit weights hold exactly, and
    both round half up. For both directions at once, OpenCV would round once and Pillow twice.
    """
    size = (PARSE_SIDE, len(picture))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _cut(frame: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Return `box` of the frame, filled with black outside it, as PIL's `crop` does."""
    height, width = frame.shape[:2]
    inside = box.clipped(width, height)
    part = frame[inside.y0 : inside.y1, inside.x0 : inside.x1]
    if inside == box:
        return part
    out = np.zeros((box.height, box.width, 3), np.uint8)
    top, left = inside.y0 - box.y0, inside.x0 - box.x0
    out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out


def cut_out(
    frames: Sequence[NDArray[np.uint8]],
    faces: Sequence[Face | None],
    picture: Picture,
    needs_parse_inputs: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the face crops and the parser's inputs of all faces."""
    present = [
        (frame, each.box)
        for frame, face in zip(frames, faces, strict=True)
        for each in in_rows([face])
    ]
    n_parsed = len(present) if needs_parse_inputs else 0
    crops = np.empty((len(present), FACE_SIDE, FACE_SIDE, 3), np.uint8)
    parse_inputs = np.empty((n_parsed, PARSE_SIDE, PARSE_SIDE, 3), np.uint8)
    for row, (frame, box) in enumerate(present):
        around = crop_box(box) if needs_parse_inputs else box
        region = even_box(around.clipped(picture.width, picture.height))
        bgr = to_bgr(frame, picture.width, picture.height, picture.colour, region)
        inner = Box(box.x0 - region.x0, box.y0 - region.y0, box.x1 - region.x0, box.y1 - region.y0)
        crops[row] = face_crop(bgr, inner)
        if needs_parse_inputs:
            parse_inputs[row] = parse_input(bgr, inner)
    return crops, parse_inputs


def even_box(box: Box) -> Box:
    """Return the smallest box with even corners around `box`; a picture's own sides are even."""
    return Box(box.x0 & ~1, box.y0 & ~1, (box.x1 + 1) & ~1, (box.y1 + 1) & ~1)
