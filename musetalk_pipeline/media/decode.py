"""Source frames as I420 arrays of the output picture, decoded by one ffmpeg child per call.

The constant-rate frame `k` is found in the FrameIndex, so frame `k` is the same picture whether it
is read from the start or from the middle. Decoding begins at the last key frame before it, and a
filter selects exactly the wanted frames by their time stamps.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.errors import InvalidVideo, StageFailed
from musetalk_pipeline.media.frame_index import FrameIndex
from musetalk_pipeline.media.sandbox import Child, ChildLimits, ffmpeg, local_input

DECODE_THREADS = 2
START_S = 60.0  # guess; starting up takes 0.1 s, the rest is for a machine under load
FRAME_S = 1.0  # guess; a 4096x2304 frame takes 0.03 s
SKIP_FRAME_S = 0.1  # a frame between the key frame and the first wanted one

# Bicubic is ffmpeg's default; accurate rounding and full chroma input cost little compared to
# decoding.
SCALER = "bicubic+accurate_rnd+full_chroma_inp"
# What ffmpeg's decoders print, before they deliver a frame, if they had to make up part of it.
DAMAGE = (b"concealing", b"error while decoding", b"Invalid data found")
_NOTES = re.compile(rb"(?<=pts:) *-?\d{1,19}(?= pts_time)|" + b"|".join(DAMAGE))

# Bars of `fit: blur` are made at this fraction of the picture's size, with a blur of this sigma.
BLUR_SCALE, BLUR_SIGMA = 16, 2  # by eye: shapes are gone, colours and movement stay

RGB_FORMATS = ("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr", "pal8")


def frame_bytes(width: int, height: int) -> int:
    """Return the size of one I420 frame; `width` and `height` even."""
    return width * height * 3 // 2


@dataclass(frozen=True, slots=True)
class _Decoding:
    """What every child that decodes for one call of `read_frames` needs."""

    source: SourceVideo
    picture: Picture
    index: FrameIndex
    seconds: float | None


def read_frames(
    source: SourceVideo, picture: Picture, start: int, end: int, *, seconds: float | None = None
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield the constant-rate frames `[start, end)` as (height * 3 // 2, width) uint8 I420.

    Every array belongs to the caller, who may write into it. Closing the generator kills the child.
    `seconds`: the deadline for all frames, for a caller that may not read all of them; None: by
    their number. What lies between the last key frame and `start` has time of its own.

    Raises:
        InvalidVideo: the file is so damaged that nothing can be decoded for these frames.
        DeadlineExceeded: decoding took too long.
    """
    if not 0 <= start < end <= source.n_frames:
        raise ValueError(f"frames {start} to {end} of {source.n_frames}")
    if source.index_path is None:
        raise StageFailed("This video has not been indexed on this node.")
    index = FrameIndex.load(source.index_path)
    wanted = index.shown[start:end].tolist()
    frames = _decoded(_Decoding(source, picture, index, seconds), wanted[0], wanted[-1])
    with contextlib.closing(frames):
        decoded = wanted[0] - 1
        for number, copies in itertools.groupby(wanted):
            while decoded < number:
                frame = next(frames)
                decoded += 1
            for _ in range(len(list(copies)) - 1):
                yield frame.copy()
            yield frame


def _decoded(decoding: _Decoding, first: int, last: int) -> Generator[NDArray[np.uint8]]:
    """Yield the decoded frames `first` to `last`, both included, each exactly once."""
    number, index = first, decoding.index
    if len(index.keys):
        key = _key_before(index, first)
        with contextlib.closing(_timed(decoding, key, first, last)) as frames:
            for time, frame, is_damaged in frames:
                if is_damaged or time != index.pts[number]:
                    break
                yield frame
                number += 1
        if number <= last:
            yield from _held(replace(decoding, seconds=None), number, last)
        return
    with contextlib.closing(_timed(decoding, None, first, last)) as frames:
        for _, frame, _ in frames:
            yield frame
            number += 1
    if number <= last:
        raise _damaged()


def _held(decoding: _Decoding, first: int, last: int) -> Iterator[NDArray[np.uint8]]:
    """Yield `first` to `last` of a stream that cannot be entered at the key frame before them.

    With intra refresh the picture becomes right only gradually after a key frame. A damaged stream
    lacks frames, or has patches copied from what was decoded before. Decoding therefore begins at
    the start, in one thread, so that the result depends on nothing but the frame's number. A
    missing frame is replaced by the one before it.
    """
    with contextlib.closing(_timed(decoding, None, 0, last, threads=1)) as frames:
        shown = upcoming = next(frames, None)
        if shown is None or upcoming is None:
            raise _damaged()
        for number in range(first, last + 1):
            while upcoming is not None and upcoming[0] <= decoding.index.pts[number]:
                shown, upcoming = upcoming, next(frames, None)
            yield shown[1].copy()


def _timed(
    decoding: _Decoding, key: int | None, first: int, last: int, *, threads: int = DECODE_THREADS
) -> Generator[tuple[int, NDArray[np.uint8], bool]]:
    """Decode from `key` (None: the start) and yield the frames from `first` to `last` that exist,
    with their times in ticks, and whether the decoder has reported damage by then.
    """
    picture = decoding.picture
    skipped = first if key is None else first - int(np.searchsorted(decoding.index.pts, key))
    wanted_s = decoding.seconds or START_S + FRAME_S * (last - first + 1)
    seconds = wanted_s + SKIP_FRAME_S * skipped
    command = _command(decoding, key, (first, last), threads)
    is_damaged = False
    with Child(command, ChildLimits(seconds), notes=_NOTES) as child:
        while True:
            frame = np.empty((picture.height * 3 // 2, picture.width), np.uint8)
            if child.read_into(memoryview(frame.data).cast("B")) < frame.nbytes:
                return
            # The filter prints a frame's note before the frame is written, so the note is there.
            note = child.take_note()
            while note is not None and note in DAMAGE:
                is_damaged, note = True, child.take_note()
            if note is None:
                raise StageFailed("ffmpeg delivered a frame without its time.")
            yield int(note), frame, is_damaged


def _damaged() -> InvalidVideo:
    return InvalidVideo("The video is damaged: some of its frames cannot be decoded.")


def _command(
    decoding: _Decoding, key: int | None, wanted: tuple[int, int], threads: int
) -> list[str]:
    source, index = decoding.source, decoding.index
    first, last = wanted
    seek: tuple[str, ...] = ()
    if key is not None:
        # One microsecond more, because a key frame's time rounded down would miss it.
        at = key * index.time_base + Fraction(1, 1_000_000)
        seek = ("-noaccurate_seek", "-seek_timestamp", "1", "-ss", f"{float(at):.6f}")
    if len(index.keys):
        chosen = f"select='between(pts,{index.pts[first]},{index.pts[last]})'"
    else:
        chosen = f"select='between(n,{first},{last})'"
    filters = [chosen, "showinfo=checksum=0", *picture_filters(source, decoding.picture)]
    return ffmpeg(
        # showinfo prints at level `info`.
        *("-v", "level+info", "-nostats", "-threads", str(threads), "-copyts", *seek),
        *local_input(source.read_path or source.path, source.demuxer),
        *("-map", f"0:{source.stream}", "-fps_mode", "passthrough", "-filter_threads", "1"),
        *("-vf", ",".join(filters), "-frames:v", str(last - first + 1), "-f", "rawvideo", "pipe:1"),
    )


def _key_before(index: FrameIndex, frame: int) -> int | None:
    """Return the time of the last key frame that is not after `frame`; None for the start."""
    place = int(np.searchsorted(index.keys, index.pts[frame], side="right"))
    return int(index.keys[place - 1]) if place else None


def picture_filters(source: SourceVideo, picture: Picture) -> list[str]:
    """Return ffmpeg's filters from a displayed source frame to the picture.

    The source's matrix and range are kept. An 8-bit 4:2:0 picture of unchanged size passes through
    untouched, because the scaler then has nothing to do.
    """
    filters = []
    if picture.crop is not None:
        box = picture.crop
        filters.append(f"crop={box.width}:{box.height}:{box.x0}:{box.y0}:exact=1")
    light = "full" if picture.colour.range == "pc" else "limited"
    size = f"{picture.scaled_width}:{picture.scaled_height}"
    if source.pixel_format.startswith(RGB_FORMATS):
        levels = "in_range=full:out_range=limited:out_color_matrix=bt709"
    else:
        levels = f"in_range={light}:out_range={light}"
    keeps_format = source.pixel_format in ("yuv420p", "yuvj420p")
    pixels = source.pixel_format if keeps_format else "yuv420p"
    filters += [f"scale={size}:flags={SCALER}:{levels}", f"format={pixels}"]
    if (picture.width, picture.height) == (picture.scaled_width, picture.scaled_height):
        return filters
    if picture.surround == "blur":
        return [*filters, _blurred_bars(picture, f"in_range={light}:out_range={light}")]
    place = f"{picture.width}:{picture.height}:{picture.pad_x}:{picture.pad_y}"
    return [*filters, f"pad={place}:color=black"]


def _blurred_bars(picture: Picture, levels: str) -> str:
    """Return the graph that puts bars of the enlarged, blurred picture on two sides of it.

    The picture itself is stacked between them, not overlaid, so its pixels stay as they are. Each
    bar is cut out and blurred at a sixteenth of the size, so that it costs little.
    """
    wide, tall = picture.scaled_width, picture.scaled_height
    has_side_bars = wide < picture.width
    if has_side_bars:
        covering = wide, _even_part(wide * picture.height, picture.width)
        sizes = (picture.pad_x, picture.width - wide - picture.pad_x)
    else:
        covering = _even_part(tall * picture.width, picture.height), tall
        sizes = (picture.pad_y, picture.height - tall - picture.pad_y)
    small = [_even_part(side, BLUR_SCALE) for side in (picture.width, picture.height)]
    blurred = (
        f"crop={covering[0]}:{covering[1]},scale={small[0]}:{small[1]}:flags=area:{levels},"
        f"gblur=sigma={BLUR_SIGMA}"
    )
    ends = ("0:0", f"{small[0]}-out_w:{small[1]}-out_h")
    bars = [(size, end) for size, end in zip(sizes, ends, strict=True) if size]
    graph = [f"split={len(bars) + 1}[whole]" + "".join(f"[to{i}]" for i in range(len(bars)))]
    for i, (size, end) in enumerate(bars):
        if has_side_bars:
            cut, full = f"{_even_part(size, BLUR_SCALE)}:{small[1]}", f"{size}:{tall}"
        else:
            cut, full = f"{small[0]}:{_even_part(size, BLUR_SCALE)}", f"{wide}:{size}"
        graph.append(
            f"[to{i}]{blurred},crop={cut}:{end},scale={full}:flags=bicubic:{levels}[bar{i}]"
        )
    order = [f"[bar{i}]" for i in range(len(bars))]
    order.insert(1 if sizes[0] else 0, "[whole]")
    stack = "hstack" if has_side_bars else "vstack"
    return ";".join([*graph, f"{''.join(order)}{stack}=inputs={len(order)}"])


def _even_part(length: int, divisor: int) -> int:
    """Return an even share of a length, at least 2."""
    return max(2, 2 * round(length / divisor / 2))
