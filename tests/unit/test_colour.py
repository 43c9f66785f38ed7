"""I420 to BGR as ffmpeg does it, and back without touching what has not changed."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import ColourTags
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.pixels.colour import to_bgr, write_bgr

WIDTH, HEIGHT = 202, 130  # no multiple of a vector register
SPACES = ["unknown", "bt709", "smpte170m", "bt470bg", "bt2020nc", "fcc", "smpte240m"]
NOISE = np.random.default_rng(5).integers(0, 256, (HEIGHT * 3 // 2, WIDTH), np.uint8)


def smooth_frame() -> NDArray[np.uint8]:
    """Return colours that exist in RGB: a gradient with soft chroma."""
    width, height = WIDTH, HEIGHT
    frame = np.empty((height * 3 // 2, width), np.uint8)
    frame[:height] = np.linspace(40, 210, width).astype(np.uint8)
    planes = frame[height:].reshape(2, height // 2, width // 2)
    planes[0] = np.linspace(118, 138, height // 2).astype(np.uint8)[:, None]
    planes[1] = np.linspace(138, 118, width // 2).astype(np.uint8)
    return frame


def write(frame: NDArray[np.uint8], box: Box, bgr: NDArray[np.uint8], colour: ColourTags) -> None:
    height, width = frame.shape[0] * 2 // 3, frame.shape[1]
    write_bgr(frame, box, bgr, to_bgr(frame, width, height, colour, box), colour)


def by_ffmpeg(frame: NDArray[np.uint8], colour: ColourTags) -> NDArray[np.uint8]:
    """Return what a `bgr24` pipe gives for a file with these tags."""
    tags = f"setparams=range={colour.range}"
    if colour.space != "unknown":
        tags += f":colorspace={colour.space}"
    pixels = "yuvj420p" if colour.range == "pc" else "yuv420p"
    size = f"{WIDTH}x{HEIGHT}"
    source = ["-f", "rawvideo", "-pix_fmt", pixels, "-s", size, "-i", "pipe:0", "-vf", tags]
    command = ["ffmpeg", "-v", "error", *source, "-pix_fmt", "bgr24", "-f", "rawvideo", "pipe:1"]
    done = subprocess.run(
        command, input=frame.tobytes(), capture_output=True, timeout=60, check=True
    )
    return np.frombuffer(done.stdout, np.uint8).reshape(HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("light", ["tv", "pc"])
@pytest.mark.parametrize("space", SPACES)
def test_pixels_equal_ffmpegs(space: str, light: str) -> None:
    colour = ColourTags(space, light)
    got = to_bgr(NOISE, WIDTH, HEIGHT, colour)
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    assert np.array_equal(got, by_ffmpeg(NOISE, colour))


def even_boxes() -> st.SearchStrategy[Box]:
    def span(length: int) -> st.SearchStrategy[tuple[int, int]]:
        ends = st.lists(st.integers(0, length // 2), min_size=2, max_size=2, unique=True)
        return ends.map(lambda pair: (2 * min(pair), 2 * max(pair)))

    return st.builds(lambda x, y: Box(x[0], y[0], x[1], y[1]), span(WIDTH), span(HEIGHT))


@given(even_boxes(), st.sampled_from(SPACES), st.sampled_from(["tv", "pc", "unknown"]))
def test_a_region_equals_the_crop_of_the_whole(box: Box, space: str, light: str) -> None:
    colour = ColourTags(space, light)
    whole = to_bgr(NOISE, WIDTH, HEIGHT, colour)
    region = to_bgr(NOISE, WIDTH, HEIGHT, colour, box)
    assert np.array_equal(region, whole[box.y0 : box.y1, box.x0 : box.x1])


@given(even_boxes())
def test_writing_what_was_read_changes_nothing(box: Box) -> None:
    frame, colour = NOISE.copy(), ColourTags("bt709", "tv")
    write(frame, box, to_bgr(frame, WIDTH, HEIGHT, colour, box), colour)
    assert np.array_equal(frame, NOISE)


@given(even_boxes())
def test_only_the_box_is_written(box: Box) -> None:
    frame, colour = smooth_frame(), ColourTags()
    before = frame.copy()
    write(frame, box, np.zeros((box.height, box.width, 3), np.uint8), colour)
    assert np.abs(frame[box.y0 : box.y1, box.x0 : box.x1].astype(int) - 16).max() <= 3
    luma = np.ones((HEIGHT, WIDTH), bool)
    luma[box.y0 : box.y1, box.x0 : box.x1] = False
    assert np.array_equal(frame[:HEIGHT][luma], before[:HEIGHT][luma])
    chroma = np.ones((2, HEIGHT // 2, WIDTH // 2), bool)
    chroma[:, box.y0 // 2 : box.y1 // 2, box.x0 // 2 : box.x1 // 2] = False
    planes = [f[HEIGHT:].reshape(chroma.shape) for f in (frame, before)]
    assert np.array_equal(planes[0][chroma], planes[1][chroma])
    assert np.abs(planes[0][~chroma].astype(int) - 128).max() <= 3


def test_unchanged_pixels_inside_the_box_keep_their_bytes() -> None:
    frame, colour, box = NOISE.copy(), ColourTags(), Box(20, 20, 120, 100)
    bgr = to_bgr(frame, WIDTH, HEIGHT, colour, box)
    bgr[30:40, 50:60] = (10, 200, 90)
    write(frame, box, bgr, colour)
    changed = np.argwhere(frame[:HEIGHT] != NOISE[:HEIGHT])
    assert changed.min(axis=0).tolist() >= [50, 70] and changed.max(axis=0).tolist() <= [59, 79]


@pytest.mark.parametrize("light", ["tv", "pc"])
@pytest.mark.parametrize("space", SPACES)
def test_a_round_trip_loses_almost_nothing(space: str, light: str) -> None:
    """What is written reads back as it was sent: no step in brightness around a paste."""
    frame, colour, box = smooth_frame(), ColourTags(space, light), Box(0, 0, WIDTH, HEIGHT)
    sent = to_bgr(smooth_frame()[:, ::-1].copy(), WIDTH, HEIGHT, colour)
    write(frame, box, sent, colour)
    off = to_bgr(frame, WIDTH, HEIGHT, colour).astype(int) - sent
    assert np.abs(off).max() <= 4
    assert np.abs(off).mean() < 1.0 and abs(off.mean()) < 0.4


def test_colours_are_those_of_the_standard() -> None:
    """75 % red in BT.709, limited range: Y 51, Cb 109, Cr 212 (ITU-R BT.709 bars)."""
    frame = np.full((6, 4), 128, np.uint8)
    red = np.tile(np.array([0, 0, 191], np.uint8), (4, 4, 1))
    write(frame, Box(0, 0, 4, 4), red, ColourTags("bt709", "tv"))
    for values, expected in ((frame[:4], 51), (frame[4], 109), (frame[5], 212)):
        assert np.abs(values.astype(int) - expected).max() <= 3  # swscale's own bias included


@pytest.mark.parametrize("box", [Box(1, 0, 3, 2), Box(0, 0, 204, 2), Box(-2, 0, 2, 2)])
def test_boxes_that_do_not_fit_are_our_own_mistake(box: Box) -> None:
    with pytest.raises(ValueError, match="even-aligned"):
        to_bgr(NOISE, WIDTH, HEIGHT, ColourTags(), box)
