"""A picture for judging a result: the source above, the result below, at a few instants."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import SourceVideo
from musetalk_pipeline.errors import StageFailed
from musetalk_pipeline.files import replacing
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.options import FrameOptions, MediaLimits
from musetalk_pipeline.pixels.colour import to_bgr
from musetalk_pipeline.pixels.picture import fit_picture
from musetalk_pipeline.plan import source_of as in_turn

CELL_PX = 320  # width of one picture
GAP_PX = 6
CAPTION_PX = 22
INK = (230, 230, 230)  # BGR
PAPER = (32, 32, 32)


def write_contact_sheet(
    source: Path,
    result: Path,
    sheet: Path,
    instants: int = 6,
    *,
    source_of: Callable[[int], int] | None = None,
) -> None:
    """Write a PNG with `instants` columns, spread over the result; complete or not at all.

    Each column shows the source frame that the output frame was made from, at the same size.
    `source_of`: returns its number; None: the video runs forwards and backwards in turn.

    Raises:
        MediaError: one of the two is not a video that can be read.
    """
    with tempfile.TemporaryDirectory(prefix="lipsync-", ignore_cleanup_errors=True) as folder:
        limits = MediaLimits()
        before = probe_video(source, limits, Path(folder))
        after = probe_video(result, limits, Path(folder))
        shown = source_of or partial(in_turn, n_source=before.n_frames)
        columns = [
            _column(before, after, shown(place), place)
            for place in spread(after.n_frames, max(1, instants))
        ]
    _write_png(sheet, _side_by_side(columns))


def spread(n_frames: int, count: int) -> list[int]:
    """Return at most `count` frames in the middles of equal stretches of `n_frames`."""
    return sorted({(2 * k + 1) * n_frames // (2 * count) for k in range(count)})


def read_picture(video: SourceVideo, frame: int) -> NDArray[np.uint8]:
    """Return one frame of a video, at its own size, as (H, W, 3) uint8 BGR."""
    picture = fit_picture(video, FrameOptions(), ())
    [pixels] = read_frames(video, picture, frame, frame + 1)
    return to_bgr(pixels, picture.width, picture.height, picture.colour)


def _column(before: SourceVideo, after: SourceVideo, shown: int, frame: int) -> NDArray[np.uint8]:
    at = f"{float(Fraction(frame) / after.fps):.2f} s"
    below = _cell(read_picture(after, frame), None)
    above = _cell(read_picture(before, shown), below.shape[0])
    return np.vstack([_caption(f"source, frame {shown}"), above, _caption(f"result, {at}"), below])


def _cell(picture: NDArray[np.uint8], height: int | None) -> NDArray[np.uint8]:
    """Scale a picture to the width of a cell, or to fit into one of that `height`."""
    rows, columns = picture.shape[:2]
    scale = CELL_PX / columns if height is None else min(CELL_PX / columns, height / rows)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    left, top = (CELL_PX - size[0]) // 2, 0 if height is None else (height - size[1]) // 2
    cell = np.full((height or size[1], CELL_PX, 3), PAPER, np.uint8)
    cell[top : top + size[1], left : left + size[0]] = small
    return cell


def _caption(text: str) -> NDArray[np.uint8]:
    strip = np.full((CAPTION_PX, CELL_PX, 3), PAPER, np.uint8)
    place = (4, CAPTION_PX - 7)
    cv2.putText(strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return strip


def _side_by_side(columns: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((columns[0].shape[0], GAP_PX, 3), PAPER, np.uint8)
    parts = [part for column in columns for part in (gap, column)]
    return np.hstack([*parts, gap])


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    is_made, data = cv2.imencode(".png", picture)
    if not is_made:
        raise StageFailed("The contact sheet could not be written as PNG.")
    with replacing(path) as part:
        part.write_bytes(data.tobytes())
