"""The picture that is asked for, and how the source gets there."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_pipeline.artifacts import ColourTags, Picture, SourceVideo
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import InvalidOptions, Stage
from musetalk_pipeline.options import FrameOptions
from musetalk_pipeline.pixels.picture import MAX_PIXELS, MAX_SIDE_PX, fit_picture, size_warnings

COLOUR = ColourTags("bt709", "tv", "bt709", "bt709")


def source(width: int = 1280, height: int = 720) -> SourceVideo:
    return SourceVideo(Path("v"), "0" * 64, 9, width, height, Fraction(25), 50, 2.0, COLOUR)


def fit(
    width: int,
    height: int,
    resolution: str | None = None,
    aspect: str | None = None,
    mode: str = "pad",
    faces: tuple[Box, ...] = (),
) -> Picture:
    options = FrameOptions(resolution, aspect, mode)  # type: ignore[arg-type]
    return fit_picture(source(width, height), options, faces)


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("keep", [None, "source", " Source "])
def test_nothing_asked_keeps_the_source(keep: str | None, mode: str) -> None:
    picture = fit(1280, 720, keep, keep, mode)
    assert picture == Picture(1280, 720, 1280, 720, 0, 0, None, COLOUR)


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_an_odd_source_is_cut_not_scaled(mode: str) -> None:
    picture = fit(641, 359, mode=mode)
    assert (picture.width, picture.height) == (picture.scaled_width, picture.scaled_height)
    assert (picture.width, picture.height) == (640, 358)
    assert picture.crop == Box(0, 0, 640, 358)


@pytest.mark.parametrize(
    ("size", "resolution", "aspect", "expected"),
    [
        ((1920, 1080), "720p", None, (1280, 720)),
        ((1080, 1920), "720p", None, (720, 1280)),
        ((1000, 1000), "720p", None, (720, 720)),
        ((854, 480), "720p", None, (1280, 720)),
        ((1280, 720), "640x360", None, (640, 360)),
        ((1280, 720), "641x361", None, (640, 360)),
        ((1280, 720), "720p", "9:16", (720, 1280)),
        ((1280, 720), "1080P", "16:9", (1920, 1080)),
        ((1280, 720), "720p", "1:1", (720, 720)),
        ((1280, 720), "720p", "4:5", (720, 900)),
        ((1280, 720), "640x640", "16:9", (640, 360)),
    ],
)
@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_sizes(
    size: tuple[int, int],
    resolution: str,
    aspect: str | None,
    expected: tuple[int, int],
    mode: str,
) -> None:
    picture = fit(*size, resolution, aspect, mode)
    assert (picture.width, picture.height) == expected


def test_an_aspect_alone_keeps_the_pixels_as_large_as_they_are() -> None:
    padded, cropped = fit(1280, 720, None, "1:1"), fit(1280, 720, None, "1:1", "crop")
    assert (padded.width, padded.height) == (1280, 1280)
    assert (padded.scaled_width, padded.scaled_height, padded.pad_y) == (1280, 720, 280)
    assert (cropped.width, cropped.height) == (720, 720)
    assert cropped.crop == Box(280, 0, 1000, 720)


def test_the_window_follows_the_median_face_and_stays_inside() -> None:
    around = [Box(x, 100, x + 100, 200) for x in (300, 320, 1180)]
    assert fit(1280, 720, None, "1:1", "crop", tuple(around)).crop == Box(10, 0, 730, 720)
    corner = (Box(1200, 600, 1280, 720),)
    assert fit(1280, 720, None, "9:16", "crop", corner).crop == Box(876, 0, 1280, 720)


@pytest.mark.parametrize(
    ("resolution", "aspect"),
    [
        ("720", None), ("p720", None), ("-720p", None), ("720.5p", None), ("", None),
        ("640x", None), ("640X360x1", None), ("0x0", None), ("0p", None), ("8p", None),
        ("4098p", None), ("99999p", None), ("4096x4096", None), ("2x400", None), ("auto", None),
        ("\N{FULLWIDTH DIGIT SEVEN}20p\n;rm", None), (None, "16x9"), (None, "16:0"), (None, "0:9"),
        (None, "100:1"), (None, "wide"), (None, "-1:1"), (None, "1:1:1"), ("720p", ":"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_with_a_sentence(
    resolution: str | None, aspect: str | None
) -> None:
    with pytest.raises(InvalidOptions) as caught:
        fit(1280, 720, resolution, aspect)
    assert caught.value.stage is Stage.VALIDATION and caught.value.code == "invalid_options"
    assert "accepted" in caught.value.message or "Send `" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("size", "resolution", "aspect", "said"),
    [
        ((641, 359), None, None, "641x359; H.264 needs even sides, so its last column and row are"),
        ((641, 360), "source", "1:1", "its last column is left out, and the picture is 640x640."),
        ((640, 361), None, None, "its last row is left out, and the picture is 640x360."),
        (
            (1280, 720),
            "641x361",
            None,
            "641x361 was requested; H.264 needs even sides, so it is 64",
        ),
        ((1280, 720), "640x640", "16:9", "and the aspect ratio 16:9; it is 640x360, the largest"),
        (
            (1280, 720),
            "721p",
            None,
            "721p was requested; H.264 needs even sides, so it is 1282x720",
        ),
    ],
)
def test_a_size_that_had_to_be_changed_is_said(
    size: tuple[int, int], resolution: str | None, aspect: str | None, said: str
) -> None:
    """Mend 2.5: an odd size was rounded silently."""
    [sentence] = size_warnings(source(*size), FrameOptions(resolution, aspect))
    assert said in sentence


@pytest.mark.parametrize(
    ("size", "resolution"),
    [((1280, 720), None), ((1280, 720), "640x360"), ((641, 359), "720p"), ((1280, 720), "480p")],
)
def test_a_size_as_asked_for_is_not_mentioned(
    size: tuple[int, int], resolution: str | None
) -> None:
    assert size_warnings(source(*size), FrameOptions(resolution)) == ()


SIDES = st.integers(16, 4096)
RESOLUTIONS = st.one_of(
    st.none(),
    st.integers(16, 2304).map("{}p".format),
    st.tuples(SIDES, SIDES).map(lambda size: f"{size[0]}x{size[1]}"),
)
ASPECTS = st.sampled_from([None, "9:16", "16:9", "1:1", "4:5", "21:9", "source"])


def test_a_small_source_is_never_cropped_to_nothing() -> None:
    picture = fit(16, 16, "16x130", None, "crop", ())
    assert picture.crop is not None
    assert (picture.crop.width, picture.crop.height) == (2, 16)


@given(SIDES, SIDES, RESOLUTIONS, ASPECTS, st.sampled_from(["pad", "blur", "crop"]), st.data())
def test_every_picture_is_even_and_consistent(
    width: int,
    height: int,
    resolution: str | None,
    aspect: str | None,
    mode: str,
    data: st.DataObject,
) -> None:
    x, y = data.draw(st.integers(-50, width)), data.draw(st.integers(-50, height))
    try:
        picture = fit(width, height, resolution, aspect, mode, (Box(x, y, x + 60, y + 60),))
    except InvalidOptions:
        return
    values = [picture.width, picture.height, picture.scaled_width, picture.scaled_height]
    values += [picture.pad_x, picture.pad_y]
    crop = picture.crop or Box(0, 0, width, height)
    if picture.crop is not None:
        values += [crop.x0, crop.y0, crop.x1, crop.y1]
    assert all(value % 2 == 0 and value >= 0 for value in values)
    assert max(picture.width, picture.height) <= MAX_SIDE_PX
    assert picture.width * picture.height <= MAX_PIXELS
    assert crop.clipped(width, height) == crop and not crop.is_empty
    assert 0 < picture.scaled_width <= picture.width - picture.pad_x
    assert 0 < picture.scaled_height <= picture.height - picture.pad_y
    assert picture.scaled_width == picture.width or picture.scaled_height == picture.height
    if mode == "crop":
        assert (picture.pad_x, picture.pad_y) == (0, 0)
        assert (picture.scaled_width, picture.scaled_height) == (picture.width, picture.height)
    # Faces keep their shape: both scales differ by rounding to even sizes only.
    x_scale, y_scale = picture.scaled_width / crop.width, picture.scaled_height / crop.height
    slack = 4 / min(picture.scaled_width, picture.scaled_height) + 4 / min(crop.width, crop.height)
    if min(picture.scaled_width, picture.scaled_height) > 2:  # nothing can be thinner than that
        assert abs(x_scale / y_scale - 1) <= slack
