"""Frames are those of the reference, and the same from wherever they are read."""

from __future__ import annotations

import pickle
import random
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest
from media_clips import CLIPS, ffmpeg, make_clip, reference_frames, rotated
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.errors import InvalidVideo
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.frame_index import FrameIndex
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.options import FrameOptions, MediaLimits
from musetalk_pipeline.pixels.picture import fit_picture

RISKY = {"bframes.mp4", "open_gop.mp4", "intra_refresh.mp4", "uneven.mp4", "open_gop.ts"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def opened(path: Path, out_dir: Path) -> tuple[SourceVideo, Picture]:
    source = probe_video(path, MediaLimits(), out_dir)
    return source, fit_picture(source, FrameOptions(), [])


def frames(source: SourceVideo, picture: Picture, start: int, end: int) -> np.ndarray:
    return np.stack(list(read_frames(source, picture, start, end)))


def check_against_reference(path: Path, out_dir: Path) -> tuple[SourceVideo, np.ndarray]:
    source, picture = opened(path, out_dir)
    pixels = "yuvj420p" if source.colour.range == "pc" else "yuv420p"
    expected = reference_frames(path, pixels)
    assert source.n_frames == len(expected)
    whole = frames(source, picture, 0, source.n_frames)
    assert whole.flags.c_contiguous and whole.dtype == np.uint8
    assert np.array_equal(whole.reshape(len(whole), -1), np.stack(expected))
    return source, whole


@pytest.mark.parametrize("name", CLIPS)
def test_frames_equal_the_reference_from_the_start_and_from_the_middle(
    name: str, clips: Path, tmp_path: Path
) -> None:
    source, whole = check_against_reference(make_clip(clips, name), tmp_path)
    picture = fit_picture(source, FrameOptions(), [])
    chance = random.Random(name)
    for _ in range(3 if name in RISKY else 1):
        start = chance.randrange(source.n_frames)
        end = chance.randrange(start, source.n_frames) + 1
        assert np.array_equal(frames(source, picture, start, end), whole[start:end]), (start, end)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(degrees: int, clips: Path, tmp_path: Path) -> None:
    source, whole = check_against_reference(rotated(clips, degrees), tmp_path)
    assert (source.width, source.height) == ((96, 64) if degrees == 180 else (64, 96))
    assert whole.shape[1:] == (source.height * 3 // 2, source.width)


def test_a_copy_with_an_edit_list_begins_where_the_list_says(clips: Path, tmp_path: Path) -> None:
    path = tmp_path / "edited.mp4"
    ffmpeg("-ss", "0.5", "-i", make_clip(clips, "bframes.mp4"), "-c", "copy", path)
    source, _ = check_against_reference(path, tmp_path)
    assert source.n_frames == 37


def test_a_transport_stream_cut_in_the_middle_of_a_group(clips: Path, tmp_path: Path) -> None:
    data = make_clip(clips, "bframes.ts").read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(data[188 * (len(data) // 188 // 3) :])
    check_against_reference(path, tmp_path)


def test_an_odd_picture_loses_one_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "odd.webm"
    frame = np.random.default_rng(1).integers(0, 256, 97 * 65 + 2 * 49 * 33, np.uint8).tobytes()
    raw = ("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "97x65", "-r", "25", "-i", "pipe:0")
    ffmpeg(*raw, "-c:v", "libvpx-vp9", "-cpu-used", "8", path, stdin=frame * 10)
    source, picture = opened(path, tmp_path)
    assert (source.width, source.height, picture.width, picture.height) == (97, 65, 96, 64)
    expected = ffmpeg("-i", path, "-vf", "crop=96:64:0:0", "-f", "rawvideo", "pipe:1")
    got = frames(source, picture, 0, 10)
    assert got.tobytes() == expected


def test_scaling_and_padding_keep_the_range(clips: Path, tmp_path: Path) -> None:
    for name, black in (("bframes.mp4", 16), ("full_range.mp4", 0)):
        source, _ = opened(make_clip(clips, name), tmp_path)
        picture = fit_picture(source, FrameOptions("128x128", None, "pad"), [])
        frame = frames(source, picture, 3, 4)[0]
        planes = frame[128:].reshape(2, 64, 64)
        assert (frame[:20] == black).all() and (frame[108:128] == black).all(), name
        assert (planes[:, :10] == 128).all()
        assert frame[24:104].std() > 20


@pytest.mark.parametrize("name", ["bframes.mp4", "full_range.mp4", "ten_bits.mp4"])
@pytest.mark.parametrize("size", ["128x128", "192x64", "96x66", "98x64"])
def test_bars_show_the_blurred_picture(clips: Path, tmp_path: Path, name: str, size: str) -> None:
    """Mend 2.14: `fit: blur`. The picture itself keeps every pixel that `pad` gives it."""
    source, _ = opened(make_clip(clips, name), tmp_path)
    black, blurred = (
        fit_picture(source, FrameOptions(size, None, fit), []) for fit in ("pad", "blur")
    )
    assert replace(blurred, surround="black") == black
    (frame,), (other,) = frames(source, black, 3, 4), frames(source, blurred, 3, 4)
    rows = slice(black.pad_y, black.pad_y + black.scaled_height)
    columns = slice(black.pad_x, black.pad_x + black.scaled_width)
    luma, other_luma = frame[: black.height], other[: black.height]
    assert np.array_equal(luma[rows, columns], other_luma[rows, columns])
    assert np.array_equal(*(chroma_inside(f, black) for f in (frame, other)))
    bars = np.ones(luma.shape, bool)
    bars[rows, columns] = False
    whole, seen = luma[rows, columns].astype(float), other_luma[bars].astype(float)
    assert abs(seen.mean() - whole.mean()) < 2 * whole.std()  # as bright as the picture, not black
    assert seen.min() > luma[bars].max() + 5
    assert np.abs(np.diff(other_luma.astype(int), axis=0))[bars[1:] & bars[:-1]].max(initial=0) < 30


def chroma_inside(frame: NDArray[np.uint8], picture: Picture) -> NDArray[np.uint8]:
    """Both chroma planes of the picture within its bars."""
    planes = frame[picture.height :].reshape(2, picture.height // 2, picture.width // 2)
    top, left = picture.pad_y // 2, picture.pad_x // 2
    return planes[
        :, top : top + picture.scaled_height // 2, left : left + picture.scaled_width // 2
    ]


def test_blurred_bars_follow_every_frame_from_everywhere(clips: Path, tmp_path: Path) -> None:
    source, _ = opened(make_clip(clips, "uneven.mp4"), tmp_path)
    picture = fit_picture(source, FrameOptions("128x128", None, "blur"), [])
    whole = frames(source, picture, 0, source.n_frames)
    assert len(whole) == source.n_frames
    for start, end in ((0, 5), (17, 31), (source.n_frames - 1, source.n_frames)):
        assert np.array_equal(frames(source, picture, start, end), whole[start:end])
    assert not np.array_equal(whole[0][:16], whole[-1][:16])


def test_cropping_takes_the_window_asked_for(clips: Path, tmp_path: Path) -> None:
    source, picture = opened(make_clip(clips, "bframes.mp4"), tmp_path)
    window = Box(20, 8, 52, 48)
    part = replace(picture, width=32, height=40, scaled_width=32, scaled_height=40, crop=window)
    whole, cut = frames(source, picture, 7, 9), frames(source, part, 7, 9)
    assert np.array_equal(cut[:, :40], whole[:, 8:48, 20:52])
    chroma = whole[:, 64:].reshape(2, 2, 32, 48)[..., 4:24, 10:26]
    assert np.array_equal(cut[:, 40:].reshape(2, 2, 20, 16), chroma)


def test_a_caller_may_paint_into_repeated_frames(clips: Path, tmp_path: Path) -> None:
    source, picture = opened(make_clip(clips, "uneven.mp4"), tmp_path)
    clean = frames(source, picture, 0, source.n_frames)
    for number, frame in enumerate(read_frames(source, picture, 0, source.n_frames)):
        assert np.array_equal(frame, clean[number])
        frame[:] = 0


def test_closing_the_iterator_kills_the_child(clips: Path, tmp_path: Path) -> None:
    source, picture = opened(make_clip(clips, "bframes.mp4"), tmp_path)
    before = set(psutil.Process().children(recursive=True))
    with closing(read_frames(source, picture, 0, 50)) as iterator:  # type: ignore[type-var]
        next(iterator)
        started = set(psutil.Process().children(recursive=True)) - before
        assert [child.name() for child in started] == ["ffmpeg"]
    assert not set(psutil.Process().children(recursive=True)) - before


def test_a_damaged_stream_gives_the_same_frames_from_everywhere(
    clips: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.mp4"
    data = bytearray(make_clip(clips, "silent.mp4").read_bytes())
    body = data.index(b"mdat") + 4
    for place in (0.3, 0.5, 0.7):
        start = body + int((len(data) - body) * place)
        data[start : start + 900] = bytes(900)
    path.write_bytes(data)
    source, picture = opened(path, tmp_path)
    whole = frames(source, picture, 0, source.n_frames)
    assert len(whole) == 50
    for start, end in ((0, 10), (14, 31), (20, 50), (35, 36)):
        assert np.array_equal(frames(source, picture, start, end), whole[start:end])


def test_frames_of_a_source_that_disappeared_are_a_typed_error(clips: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.mp4"
    path.write_bytes(make_clip(clips, "bframes.mp4").read_bytes())
    source, picture = opened(path, tmp_path)
    path.unlink()
    with pytest.raises(InvalidVideo):
        list(read_frames(source, picture, 0, 5))


def test_the_source_stays_small_and_the_index_lies_beside(clips: Path, tmp_path: Path) -> None:
    source, _ = opened(make_clip(clips, "bframes.mp4"), tmp_path)
    assert len(pickle.dumps(source)) < 2000
    assert source.index_path is not None
    index = FrameIndex.load(source.index_path)
    assert len(index.shown) == source.n_frames == 50
    assert index.time_base == Fraction(1, 12800)


def test_ranges_outside_the_video_are_our_own_mistake(clips: Path, tmp_path: Path) -> None:
    source, picture = opened(make_clip(clips, "bframes.mp4"), tmp_path)
    for start, end in ((-1, 3), (3, 3), (0, 51)):
        with pytest.raises(ValueError, match="of 50"):
            list(read_frames(source, picture, start, end))


def test_an_edit_list_may_leave_out_the_end(clips: Path, tmp_path: Path) -> None:
    """A phone trims without cutting: more frames are stored than shown, and nothing is missing."""
    data = make_clip(clips, "silent.mp4").read_bytes()
    place = data.index(b"elst") + 4 + 8
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(data[:place] + (1000).to_bytes(4, "big") + data[place + 4 :])  # ms of 2000
    source, _ = check_against_reference(path, tmp_path)
    assert source.n_frames < 50
