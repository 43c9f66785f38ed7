"""Parse maps to masks; that they equal the reference is shown in tests/parity."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_pipeline.options import MaskOptions, ParsingMode
from musetalk_pipeline.pixels.masks import (
    LOWER_LIP,
    MOUTH,
    NECK,
    NOSE,
    SKIN,
    UPPER_LIP,
    cheek_columns,
    jaw_kernel,
    pack_mask,
    replace_mask,
)


def face() -> NDArray[np.uint8]:
    """Return a map of a simple face: skin with a nose and lips on it, neck below."""
    labels = np.zeros((512, 512), np.uint8)
    labels[380:500, 200:312] = NECK
    labels[100:400, 120:392] = SKIN
    labels[200:260, 240:272] = NOSE
    labels[300:310, 220:292] = UPPER_LIP
    labels[310:320, 220:292] = MOUTH
    labels[320:330, 220:292] = LOWER_LIP
    return labels


@pytest.mark.parametrize(
    ("mode", "replaced"),
    [
        ("raw", {SKIN, MOUTH, UPPER_LIP, LOWER_LIP}),
        ("neck", {SKIN, MOUTH, UPPER_LIP, LOWER_LIP, NECK}),
    ],
)
def test_raw_and_neck_replace_exactly_their_classes(mode: ParsingMode, replaced: set[int]) -> None:
    labels = face()
    mask = replace_mask(labels, MaskOptions(mode))
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask > 0, np.isin(labels, list(replaced)))


def test_jaw_reaches_below_the_chin_in_the_middle_only() -> None:
    mask = replace_mask(face(), MaskOptions("jaw")) > 0
    rows = np.flatnonzero(mask[:, 256])
    assert rows[-1] == 399 + 6  # the kernel's tip reaches six rows up from its centre
    # Dilated by 10 columns, eroded by twice 17: the edges of the cheeks are left alone.
    assert not mask[:, :144].any()
    assert mask[200, 144]
    assert mask[390, 200:312].all()


def test_jaw_leaves_the_nose_and_keeps_the_lips() -> None:
    labels = face()
    mask = replace_mask(labels, MaskOptions("jaw", 20, 20)) > 0
    assert not mask[labels == NOSE].any()
    assert mask[np.isin(labels, [MOUTH, UPPER_LIP, LOWER_LIP])].all()


def test_wider_middle_makes_a_larger_mask() -> None:
    labels = face()
    areas = [
        int((replace_mask(labels, MaskOptions("jaw", width, width)) > 0).sum())
        for width in (20, 90, 130)
    ]
    assert areas == sorted(areas)
    assert areas[0] < areas[2]


def test_labels_are_left_as_they_were() -> None:
    labels = face()
    labels.flags.writeable = False
    for mode in ("jaw", "raw", "neck"):
        replace_mask(labels, MaskOptions(mode))
    assert np.array_equal(labels, face())


def test_cheek_columns_leave_the_middle() -> None:
    columns = cheek_columns(90, 60)
    assert np.flatnonzero(~columns).tolist() == list(range(167, 316))


def test_the_jaw_kernel_is_a_cone_on_a_block() -> None:
    widths = jaw_kernel().sum(axis=1).tolist()
    assert widths == [0] * 10 + list(range(1, 22, 2)) + [21] * 12


def test_packed_masks_come_back_whole() -> None:
    mask = replace_mask(face(), MaskOptions("jaw"))
    packed = pack_mask(mask)
    assert packed.shape == (32768,)
    assert np.array_equal(np.unpackbits(packed).reshape(512, 512) > 0, mask > 0)
