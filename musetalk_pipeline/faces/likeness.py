"""How alike two faces look: descriptors of aligned faces, compared by their cosine.

A descriptor says which way the edges of the face run in each of 8 x 8 cells, and which colour its
parts have. It recognises a person whose pose and light are about the same as before, as after a cut
back to the same camera. It does not recognise a person from another side, or years later: that
needs a network trained on many people, and none is packaged.

Measured: one person within a shot 0.96 to 1.0, in other light 0.98, mirrored 0.62; in photographs
of different years 0.1 to 0.5; different people up to 0.77, of 22 portraits (docs/landmarks.md).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

SIDE = 64  # pixels of an aligned face
# Where the middles of the eyes, left then right in the picture, and of the mouth come to lie.
_PLACES = np.array([[20, 24], [44, 24], [32, 48]], np.float32)
_EYES_AND_MOUTH = (slice(36, 42), slice(42, 48), slice(48, 60))  # iBUG
CELLS, DIRECTIONS, COLOUR_CELLS = 8, 8, 4
COLOUR_SHARE = 0.2  # of the cosine (guess)
_GREY = 30.0  # how far apart in a and b of CIELAB two colours have to be to count as different
_SMOOTH_PX = 2.0

ALIKE = 0.78  # guess, from the measurements above: from here on, two faces are one person's
STILL_ALIKE = 0.6  # guess: a face at the same place a moment later is another one below this
CLEARLY = 0.05  # guess: by how much a face must be more like the person than like the others


def describe(bgr: NDArray[np.uint8], points: Float) -> Float:
    """Return the descriptor of a face, of length 1: (545,) float32.

    `bgr`: (H, W, 3) uint8, the frame. `points`: (68, 2) x, y in it, iBUG order.
    """
    face = _aligned(bgr, points)
    edges, colours = _edges(face), _colours(face)
    return np.concatenate(
        (np.sqrt(1 - COLOUR_SHARE) * edges, np.sqrt(COLOUR_SHARE) * colours)
    ).astype(np.float32)


def likeness(one: Float, other: Float) -> float:
    """Return how alike two faces are, at most 1. `one`, `other`: descriptors."""
    return float(one @ other)


def _aligned(bgr: NDArray[np.uint8], points: Float) -> NDArray[np.uint8]:
    """Return the face as (SIDE, SIDE, 3) uint8 BGR, upright, eyes and mouth in their places."""
    found = np.array([points[part].mean(axis=0) for part in _EYES_AND_MOUTH], np.float32)
    middle, wanted = found.mean(axis=0), _PLACES.mean(axis=0)
    a, b = found - middle, _PLACES - wanted
    # The similarity that brings the three points nearest to their places (least squares).
    size = max(float((a**2).sum()), 1e-6)
    cos = float((a * b).sum()) / size
    sin = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / size
    turn = np.array([[cos, -sin], [sin, cos]], np.float64)
    matrix = np.column_stack((turn, wanted - turn @ middle))
    scale = float(np.hypot(cos, sin))
    part, matrix = _part_around(bgr, points, matrix)
    if scale < 0.5:
        # Averaged down to twice the size that is wanted, so that no pixel is left out.
        height, width = part.shape[:2]
        small = max(1, round(width * scale * 2)), max(1, round(height * scale * 2))
        part = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
        matrix[:, :2] = matrix[:, :2] * (width / small[0], height / small[1])
    return np.asarray(
        cv2.warpAffine(
            part, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ),
        np.uint8,
    )


def _part_around(
    bgr: NDArray[np.uint8], points: Float, matrix: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the part of a frame around a face, and the matrix that belongs to the part."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = float((high - low).max())
    height, width = bgr.shape[:2]
    x0, y0 = (int(v) for v in np.clip(low - room, 0, (width - 1, height - 1)))
    x1, y1 = (int(v) for v in np.clip(high + room, (x0 + 1, y0 + 1), (width, height)))
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (x0, y0)
    return bgr[y0:y1, x0:x1], moved


def _edges(face: NDArray[np.uint8]) -> Float:
    """Return how strong the edges of each direction are in each cell, relative to those around."""
    grey = cv2.cvtColor(face, cv2.COLOR_BGR2GRAY).astype(np.float32)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength = np.hypot(across, down)
    direction = np.arctan2(down, across) % (2 * np.pi) * (DIRECTIONS / (2 * np.pi))
    lower = np.floor(direction).astype(np.intp)
    share = (direction - lower).astype(np.float32)
    votes = np.zeros((SIDE, SIDE, DIRECTIONS), np.float32)
    rows, columns = np.indices((SIDE, SIDE))
    votes[rows, columns, lower % DIRECTIONS] += strength * (1 - share)
    votes[rows, columns, (lower + 1) % DIRECTIONS] += strength * share
    smooth = cv2.GaussianBlur(votes, (0, 0), _SMOOTH_PX)
    cells = cv2.resize(smooth, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    energy = (cells**2).sum(axis=2)
    around = np.sqrt(cv2.blur(energy, (3, 3))) + 0.05 * np.sqrt(energy.mean()) + 1e-3
    values = np.sqrt(cells / around[..., None]).ravel()
    values -= values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-6), np.float32)


def _colours(face: NDArray[np.uint8]) -> Float:
    """Return the tint of each cell, without its brightness; a grey face is at one end."""
    lab = cv2.cvtColor(face, cv2.COLOR_BGR2LAB).astype(np.float32)
    cells = cv2.resize(lab, (COLOUR_CELLS, COLOUR_CELLS), interpolation=cv2.INTER_AREA)
    values = np.append((cells[..., 1:] - 128).ravel(), _GREY)
    return np.asarray(values / np.linalg.norm(values), np.float32)
