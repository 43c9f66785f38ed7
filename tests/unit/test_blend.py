"""Soft masks and the integer paste, against the reference's own steps and its golden frames."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from musetalk_pipeline.boxes import Box, crop_box, face_box, with_chin_margin
from musetalk_pipeline.pixels.blend import (
    SoftMask,
    crop_mask,
    mix,
    paste_face,
    soft_mask,
    unpack_mask,
)
from musetalk_pipeline.pixels.crops import face_crop

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
WIDTH, HEIGHT = 320, 240
FRAME = Box(0, 0, WIDTH, HEIGHT)


def a_mask(seed: int = 3) -> np.ndarray:
    """A blob with holes and a ragged edge, 512 x 512, 0 or 255."""
    rough = np.random.default_rng(seed).normal(size=(16, 16)).astype(np.float32)
    smooth = cv2.resize(rough, (512, 512), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    return np.where(smooth + 1.5 > 2 * (x * x + y * y), 255, 0).astype(np.uint8)


def blend_as_the_specification_says(
    frame: np.ndarray, drawn: np.ndarray, face: Box, replace: np.ndarray, blur: float
) -> tuple[np.ndarray, np.ndarray]:
    """docs/reference.md §1.9 in Pillow, on whole pictures: the blended frame and the mask."""
    crop = crop_box(face)
    body = Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
    large = body.crop((crop.x0, crop.y0, crop.x1, crop.y1))
    inner = (face.x0 - crop.x0, face.y0 - crop.y0, face.x1 - crop.x0, face.y1 - crop.y0)
    mask = Image.new("L", large.size, 0)
    mask.paste(Image.fromarray(replace).resize(large.size).crop(inner), inner)
    sharp = np.array(mask)
    sharp[: int(large.size[1] * 0.5)] = 0
    kernel = int(blur * large.size[0] // 2 * 2) + 1
    soft = cv2.GaussianBlur(sharp, (kernel, kernel), 0)
    stretched = cv2.resize(drawn, (face.width, face.height))
    large.paste(Image.fromarray(np.ascontiguousarray(stretched[:, :, ::-1])), inner)
    body.paste(large, (crop.x0, crop.y0), Image.fromarray(soft))
    return np.asarray(body)[:, :, ::-1], soft


FACES = st.builds(
    lambda x, y, w, h: Box(x, y, x + w, y + h).clipped(WIDTH, HEIGHT),
    st.integers(0, WIDTH - 16),
    st.integers(0, HEIGHT - 16),
    st.integers(8, 240),
    st.integers(8, 240),
)


@given(FACES, st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.3, 0.5]), st.integers(0, 5))
@example(Box(0, 0, WIDTH, HEIGHT), 0.5, 1)
@example(Box(200, 100, 320, 240), 0.05, 2)
def test_a_blend_equals_the_specification(face, blur, seed):
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    drawn = rng.integers(0, 256, (256, 256, 3), np.uint8)
    replace = a_mask(seed)
    expected, expected_mask = blend_as_the_specification_says(frame, drawn, face, replace, blur)

    np.testing.assert_array_equal(crop_mask(replace, face, blur), expected_mask)
    mask = soft_mask(replace, face, blur)
    blended = frame.copy()
    if mask is not None:
        paste_face(blended, FRAME, drawn, face, mask)
    np.testing.assert_array_equal(blended, expected)


FACES_OVER_THE_EDGE = st.builds(
    lambda x, y, w, h: Box(x, y, x + w, y + h),
    st.integers(0, WIDTH - 8),
    st.integers(0, HEIGHT - 8),
    st.integers(8, 400),
    st.integers(8, 400),
)


@given(FACES_OVER_THE_EDGE, st.integers(0, 5))
@example(Box(200, 100, 400, 280), 2)
@example(Box(310, 230, 700, 600), 1)
def test_a_face_over_the_edge_is_stretched_as_the_specification_says(face, seed):
    """Q13: the crop is what numpy cuts out, the paste has the box's size, the rest is lost."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cut = frame[face.y0 : face.y1, face.x0 : face.x1]
    drawn = cv2.resize(cut, (256, 256), interpolation=cv2.INTER_LANCZOS4)
    np.testing.assert_array_equal(face_crop(frame, face), drawn)

    expected, _ = blend_as_the_specification_says(frame, drawn, face, a_mask(seed), 0.05)
    mask = soft_mask(a_mask(seed), face, 0.05)
    mask = mask and mask.clipped(WIDTH, HEIGHT)
    blended = frame.copy()
    if mask is not None:
        paste_face(blended, FRAME, drawn, face, mask)
    np.testing.assert_array_equal(blended, expected)


@given(FACES, st.sampled_from([0.02, 0.05, 0.1]))
def test_the_mask_stays_within_the_face_and_is_as_small_as_it_can_be(face, blur):
    mask = soft_mask(a_mask(), face, blur)
    if mask is None:
        return
    assert face.x0 <= mask.box.x0 < mask.box.x1 <= face.x1
    assert face.y0 <= mask.box.y0 < mask.box.y1 <= face.y1
    assert mask.alpha.shape == (mask.box.height, mask.box.width)
    assert mask.alpha[0].any() and mask.alpha[-1].any()
    assert mask.alpha[:, 0].any() and mask.alpha[:, -1].any()


def test_an_empty_mask_is_none():
    assert soft_mask(np.zeros((512, 512), np.uint8), Box(10, 10, 90, 120), 0.05) is None


def test_a_region_is_pasted_like_the_whole_frame():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    drawn = rng.integers(0, 256, (256, 256, 3), np.uint8)
    face = Box(81, 35, 180, 171)
    mask = soft_mask(a_mask(), face, 0.05)
    assert mask is not None
    whole, part = frame.copy(), frame.copy()
    paste_face(whole, FRAME, drawn, face, mask)
    region = Box(80, 90, 182, 172)
    paste_face(part[90:172, 80:182], region, drawn, face, mask)
    np.testing.assert_array_equal(part, whole)


@given(st.integers(0, 255))
def test_mix_rounds_the_exact_division(alpha):
    background, foreground = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256))
    bg, fg = (np.repeat(a[:, :, None], 3, 2).astype(np.uint8) for a in (background, foreground))
    mixed = mix(bg, fg, np.full((256, 256), alpha, np.uint8))
    exact = (bg.astype(int) * (255 - alpha) + fg.astype(int) * alpha) / 255
    np.testing.assert_array_equal(mixed, np.floor(exact + 0.5))


def test_the_weight_fades_between_the_source_and_the_drawn_face():
    frame = np.full((40, 40, 3), 200, np.uint8)
    drawn = np.zeros((256, 256, 3), np.uint8)
    face = Box(4, 4, 36, 36)
    mask = SoftMask(Box(10, 20, 30, 34), np.full((14, 20), 255, np.uint8))

    def shown(weight: float) -> int:
        out = frame.copy()
        paste_face(out, Box(0, 0, 40, 40), drawn, face, mask, weight)
        return int(out[25, 20, 0])

    assert [shown(weight) for weight in (0.0, 0.5, 1.0)] == [200, 100, 0]
    assert shown(-1.0) == 200
    assert shown(2.0) == 0


def test_a_packed_mask_is_unpacked_to_what_it_was():
    replace = a_mask()
    np.testing.assert_array_equal(unpack_mask(np.packbits(replace > 0)), replace)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden")
@pytest.mark.parametrize(
    ("version", "mode", "shift"),
    [("v15", "jaw", 0), ("v15", "raw", 0), ("v15", "neck", 0), ("v1", "raw", 5)],
)
def test_golden_frames_are_reproduced(version, mode, shift):
    """The golden masks belong to frame 0, so that is the frame that can be blended from them."""
    load = {name: np.load(GOLDEN / f"{version}_{name}.npz") for name in FILES}
    frame = cv2.imread(str(GOLDEN / "astro" / "00000000.png"))
    face = face_box(np.load(GOLDEN / "astro_landmarks.npz")["landmarks"][0], shift)
    assert face is not None
    if version == "v15":
        face = with_chin_margin(face, frame.shape[0], 10)
    replace, drawn = load["parse"][mode], load["decoded"]["faces"][0]
    whole = Box(0, 0, frame.shape[1], frame.shape[0])

    np.testing.assert_array_equal(face_crop(frame, face), load["crop"]["crop256"][0])

    offline = frame.copy()
    mask = soft_mask(replace, face, 0.05)
    assert mask is not None
    paste_face(offline, whole, drawn, face, mask)
    np.testing.assert_array_equal(offline, load["blended"][mode][0])

    if mode in ("jaw", "raw") and (version, mode) != ("v15", "raw"):
        np.testing.assert_array_equal(crop_mask(replace, face, 0.1), load["realtime"]["mask0"])
        realtime = frame.copy()
        mask = soft_mask(replace, face, 0.1)
        assert mask is not None
        paste_face(realtime, whole, drawn, face, mask)
        np.testing.assert_array_equal(realtime, load["realtime"]["blended0"])


FILES = ("crop", "parse", "decoded", "blended", "realtime")
