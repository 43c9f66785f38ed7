"""The output picture: which part of the source it shows, how large, and where. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from statistics import median

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import InvalidOptions
from musetalk_pipeline.options import FrameOptions, Surround

MIN_SIDE_PX = 16
MAX_SIDE_PX = 4096
MAX_PIXELS = 4096 * 2304  # as MediaLimits.max_pixels: what H.264 level 5.1 decoders take
LEAVE_OUT = "Leave the option out to get the video's own size and shape."
MAX_ASPECT = 4  # guess: more than 4:1 is a typing error

_SHORT_SIDE = re.compile(r"(\d{1,5})p")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_ASPECT = re.compile(r"(\d{1,4}):(\d{1,4})")


def fit_picture(source: SourceVideo, options: FrameOptions, faces: Sequence[Box]) -> Picture:
    """Return how the source becomes the picture that `options` describe.

    `faces`: boxes in displayed source pixels, sampled over the clip; with `fit="crop"` the window
    follows their median centre and is the same for the whole clip, else the picture's centre.
    A source at its own size is never scaled; an odd size loses its last column or row.

    Raises:
        InvalidOptions: the resolution or aspect ratio is malformed or out of bounds.
    """
    width, height = target_size(source.width, source.height, options)
    if options.fit == "crop" or (width, height) == (_even(source.width), _even(source.height)):
        return _cropped(source, width, height, faces)
    return _padded(source, width, height, "blur" if options.fit == "blur" else "black")


def whole_picture(source: SourceVideo) -> Picture:
    """Return the source at its own size, without the last column or row of an odd one."""
    return _cropped(source, _even(source.width), _even(source.height), ())


def to_source(box: Box, source: SourceVideo, picture: Picture) -> Box:
    """Return where a box of the picture is in the displayed source."""
    crop = _shown(source, picture)
    across, down = crop.width / picture.scaled_width, crop.height / picture.scaled_height
    return Box(
        round((box.x0 - picture.pad_x) * across) + crop.x0,
        round((box.y0 - picture.pad_y) * down) + crop.y0,
        round((box.x1 - picture.pad_x) * across) + crop.x0,
        round((box.y1 - picture.pad_y) * down) + crop.y0,
    )


def to_picture(box: Box, source: SourceVideo, picture: Picture) -> Box:
    """Return where a box of the displayed source is in the picture; it may lie outside."""
    crop = _shown(source, picture)
    across, down = picture.scaled_width / crop.width, picture.scaled_height / crop.height
    return Box(
        round((box.x0 - crop.x0) * across) + picture.pad_x,
        round((box.y0 - crop.y0) * down) + picture.pad_y,
        round((box.x1 - crop.x0) * across) + picture.pad_x,
        round((box.y1 - crop.y0) * down) + picture.pad_y,
    )


def is_shown(box: Box, picture: Picture) -> bool:
    """Return whether a box of the picture is in the source's part of it, and not in the blurred
    copy around that (`surround`).
    """
    x, y = box.middle
    right, bottom = picture.pad_x + picture.scaled_width, picture.pad_y + picture.scaled_height
    return picture.pad_x <= x < right and picture.pad_y <= y < bottom


def _shown(source: SourceVideo, picture: Picture) -> Box:
    return picture.crop or Box(0, 0, source.width, source.height)


def size_warnings(source: SourceVideo, options: FrameOptions) -> tuple[str, ...]:
    """Return a sentence if the output cannot have the requested size, or the source's."""
    width, height = target_size(source.width, source.height, options)
    literal, made = _parse_size(options.resolution), f"{width}x{height}"
    if literal is not None:
        requested = f"A picture of {literal[0]}x{literal[1]} was requested"
        if literal == (width, height):
            return ()
        if _parse_aspect(options.aspect_ratio) is None:
            return (f"{requested}; H.264 needs even sides, so it is {made}.",)
        shape = f"the aspect ratio {_word(options.aspect_ratio)}"
        return (f"{requested}, and {shape}; it is {made}, the largest of that shape in it.",)
    short = _parse_short_side(options.resolution)
    if short is not None and short % 2:
        return (f"A picture of {short}p was requested; H.264 needs even sides, so it is {made}.",)
    if short is None and (source.width % 2 or source.height % 2):
        size = f"{source.width}x{source.height}"
        lost = {(1, 0): "column is", (0, 1): "row is"}.get(
            (source.width % 2, source.height % 2), "column and row are"
        )
        return (
            f"The video is {size}; H.264 needs even sides, so its last {lost} left out, and the "
            f"picture is {made}.",
        )
    return ()


def target_size(source_width: int, source_height: int, options: FrameOptions) -> tuple[int, int]:
    """Return the even width and height of the output."""
    literal = _parse_size(options.resolution)
    aspect = _parse_aspect(options.aspect_ratio)
    if literal is not None and aspect is None:
        width, height = literal
    elif literal is not None and aspect is not None:
        # Both: the largest picture of that shape inside that size.
        width, height = _inside(*literal, aspect)
    else:
        width, height = _shaped(source_width, source_height, options, aspect)
    return _checked(width, height, options)


def _shaped(
    source_width: int, source_height: int, options: FrameOptions, aspect: Fraction | None
) -> tuple[int, int]:
    short = _parse_short_side(options.resolution)
    if aspect is None and short is None:
        return _even(source_width), _even(source_height)
    shape = aspect or Fraction(source_width, source_height)
    if short is None:
        # Without a requested size, the pixels stay as large as they are.
        if options.fit == "crop":
            return _inside(source_width, source_height, shape)
        return _around(source_width, source_height, shape)
    if shape >= 1:
        return _nearest_even(short * shape), _nearest_even(Fraction(short))
    return _nearest_even(Fraction(short)), _nearest_even(short / shape)


def _inside(width: int, height: int, shape: Fraction) -> tuple[int, int]:
    """Return the largest even size of that shape within `width x height`, at least 2 x 2."""
    if Fraction(width, height) > shape:
        return max(2, _even(int(height * shape))), _even(height)
    return _even(width), max(2, _even(int(width / shape)))


def _around(width: int, height: int, shape: Fraction) -> tuple[int, int]:
    """Return the smallest size of that shape that holds `width x height`."""
    width, height = _even(width), _even(height)
    if Fraction(width, height) < shape:
        return _nearest_even(height * shape), height
    return width, _nearest_even(width / shape)


def _cropped(source: SourceVideo, width: int, height: int, faces: Sequence[Box]) -> Picture:
    if (width, height) == (_even(source.width), _even(source.height)):
        crop_width, crop_height = width, height
    else:
        crop_width, crop_height = _inside(source.width, source.height, Fraction(width, height))
    x_centre, y_centre = _face_centre(source, faces)
    x0 = _even(min(max(0, round(x_centre - crop_width / 2)), source.width - crop_width))
    y0 = _even(min(max(0, round(y_centre - crop_height / 2)), source.height - crop_height))
    crop = Box(x0, y0, x0 + crop_width, y0 + crop_height)
    is_whole = crop == Box(0, 0, source.width, source.height)
    return Picture(width, height, width, height, 0, 0, None if is_whole else crop, source.colour)


def _padded(source: SourceVideo, width: int, height: int, surround: Surround) -> Picture:
    even = Box(0, 0, _even(source.width), _even(source.height))
    crop = None if even == Box(0, 0, source.width, source.height) else even
    scaled_width, scaled_height = width, height
    if (even.width <= width and even.height <= height) and (
        even.width == width or even.height == height
    ):
        scaled_width, scaled_height = even.width, even.height
    elif even.width * height > even.height * width:
        scaled_height = min(height, _nearest_even(Fraction(width * even.height, even.width)))
    else:
        scaled_width = min(width, _nearest_even(Fraction(height * even.width, even.height)))
    pad_x, pad_y = _even((width - scaled_width) // 2), _even((height - scaled_height) // 2)
    size = width, height, scaled_width, scaled_height
    return Picture(*size, pad_x, pad_y, crop, source.colour, surround)


def _face_centre(source: SourceVideo, faces: Sequence[Box]) -> tuple[float, float]:
    if not faces:
        return source.width / 2, source.height / 2
    return (
        median((face.x0 + face.x1) / 2 for face in faces),
        median((face.y0 + face.y1) / 2 for face in faces),
    )


def _parse_size(text: str | None) -> tuple[int, int] | None:
    match = _SIZE.fullmatch(_word(text))
    return (int(match[1]), int(match[2])) if match else None


def _parse_short_side(text: str | None) -> int | None:
    word = _word(text)
    if word == "source":
        return None
    match = _SHORT_SIDE.fullmatch(word)
    if match is None:
        raise InvalidOptions(
            f"The resolution {_quoted(text)} is not understood. Send `720p` (the short side), "
            "`640x360` (width x height), or `source`.",
            hint=LEAVE_OUT,
        )
    return int(match[1])


def _parse_aspect(text: str | None) -> Fraction | None:
    word = _word(text)
    if word == "source":
        return None
    match = _ASPECT.fullmatch(word)
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise InvalidOptions(
            f"The aspect ratio {_quoted(text)} is not understood. Send `9:16`, `16:9`, `1:1`, "
            "`4:5` or another pair of whole numbers, or `source`.",
            hint=LEAVE_OUT,
        )
    shape = Fraction(int(match[1]), int(match[2]))
    if not Fraction(1, MAX_ASPECT) <= shape <= MAX_ASPECT:
        raise InvalidOptions(
            f"The aspect ratio {_quoted(text)} is too extreme; 1:{MAX_ASPECT} to {MAX_ASPECT}:1 "
            "are accepted.",
            hint=LEAVE_OUT,
        )
    return shape


def _word(text: str | None) -> str:
    return "source" if text is None else text.strip().lower()


def _quoted(text: str | None) -> str:
    return "`" + "".join(c for c in (text or "")[:32] if c.isprintable()) + "`"


def _checked(width: int, height: int, options: FrameOptions) -> tuple[int, int]:
    width, height = _even(width), _even(height)
    is_large = max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS
    if is_large and options.resolution is None and options.aspect_ratio is None:
        raise InvalidOptions(
            f"The video is {width}x{height}, which is larger than the output can be. Send "
            "`resolution: 1080p`, or a smaller video.",
            hint="Send `resolution: 1080p`, or a smaller video.",
            input="video",
        )
    if is_large or min(width, height) < MIN_SIDE_PX:
        raise InvalidOptions(
            f"A picture of {width}x{height} cannot be made; {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels "
            f"a side and at most {MAX_PIXELS / 1e6:.1f} megapixels are accepted.",
            hint=LEAVE_OUT,
            width=width,
            height=height,
        )
    return width, height


def _even(value: int) -> int:
    return value & ~1


def _nearest_even(value: Fraction) -> int:
    return max(2, 2 * round(value / 2))
