"""Decoders that threads leave to each other: the same frames, and no more decoders than allowed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from musetalk_pipeline.media import shared_readers
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.media.shared_readers import SharedReaders
from musetalk_pipeline.options import FrameOptions, MediaLimits
from musetalk_pipeline.pixels.picture import fit_picture
from tests.children import children_named


@pytest.fixture(params=[False, True], ids=["constant rate", "variable rate"])
def media(request, clip, tmp_path):
    source = probe_video(clip(frames=40, is_variable_rate=request.param), MediaLimits(), tmp_path)
    return source, fit_picture(source, FrameOptions(), ())


@pytest.fixture
def shared():
    readers = SharedReaders(2)
    yield readers
    readers.close()
    assert not decoders()


def decoders() -> list[psutil.Process]:
    return children_named("ffmpeg")


def test_ranges_of_several_threads_are_the_same_frames(media, shared):
    source, picture = media
    whole = np.stack(list(read_frames(source, picture, 0, source.n_frames)))
    read = shared.of("job", source, picture)
    ranges = [(0, 7), (10, 20), (7, 10), (20, 21), (5, 9), (25, 30), (21, 25), (30, 40), (38, 39)]
    with ThreadPoolExecutor(3) as threads:
        found = threads.map(lambda place: np.stack(list(read(*place))), ranges)
        for (start, end), frames in zip(ranges, found, strict=True):
            np.testing.assert_array_equal(frames, whole[start:end])


def test_a_decoder_goes_on_behind_a_gap_but_not_before_its_place(media, shared):
    source, picture = media
    read = shared.of("job", source, picture)
    list(read(0, 5))
    [first] = decoders()
    list(read(9, 12))
    assert decoders() == [first]
    list(read(5, 9))
    assert len(decoders()) == 2
    list(read(12, 13))
    assert first in decoders()
    assert len(decoders()) == 2


def test_what_was_searched_is_read_once_more_from_the_same_decoder(media, shared):
    source, picture = media
    whole = np.stack(list(read_frames(source, picture, 0, source.n_frames)))
    search = shared.of("job", source, picture, keeps=True)
    for place in (0, 6, 3):
        [found] = search(place, place + 1)
        np.testing.assert_array_equal(found, whole[place])
        found[:] = 0  # it belongs to the caller
    [first] = decoders()
    read = shared.of("job", source, picture)
    np.testing.assert_array_equal(np.stack(list(read(0, 10))), whole[:10])
    assert decoders() == [first]
    np.testing.assert_array_equal(np.stack(list(read(2, 4))), whole[2:4])
    assert len(decoders()) == 2  # only once


def test_more_than_the_budget_is_not_kept(media, shared, monkeypatch):
    source, picture = media
    monkeypatch.setattr(shared_readers, "KEPT_BYTES", 3 * picture.width * picture.height)
    search = shared.of("job", source, picture, keeps=True)
    list(search(0, 3))
    list(shared.of("job", source, picture)(0, 1))
    assert len(decoders()) == 2


def test_no_more_than_the_wanted_number_waits(media, shared):
    source, picture = media
    read = shared.of("job", source, picture)
    for start in (30, 20, 10, 0):
        list(read(start, start + 1))
    assert len(decoders()) == 2


def test_decoders_of_large_pictures_do_not_wait_together(media, shared, monkeypatch):
    source, picture = media
    monkeypatch.setattr(shared_readers, "IDLE_BYTES", 40 * picture.width * picture.height)
    read = shared.of("job", source, picture)
    for start in (20, 0):
        list(read(start, start + 1))
    [left] = decoders()
    list(read(1, 2))
    assert decoders() == [left]


def test_a_job_does_not_use_the_decoder_of_another_and_ends_its_own(media, shared):
    source, picture = media
    for job in ("one", "other"):
        list(shared.of(job, source, picture)(0, 5))
    assert len(decoders()) == 2
    shared.close("one")
    [left] = decoders()
    list(shared.of("other", source, picture)(5, 6))
    assert decoders() == [left]


def test_a_range_that_was_left_early_ends_its_decoder(media, shared):
    source, picture = media
    read = shared.of("job", source, picture)
    left = read(0, 10)
    next(left)
    left.close()
    assert not decoders()
    [frame] = read(1, 2)
    np.testing.assert_array_equal(frame, next(read_frames(source, picture, 1, 2)))


def test_the_end_of_the_video_ends_the_decoder(media, shared):
    source, picture = media
    list(shared.of("job", source, picture)(source.n_frames - 2, source.n_frames))
    assert not decoders()


def test_a_decoder_that_nobody_needs_is_ended(media):
    source, picture = media
    readers = SharedReaders(2, idle_s=0.05)
    list(readers.of("job", source, picture)(0, 5))
    psutil.wait_procs(decoders(), timeout=20.0)
    assert not decoders()


def test_an_old_decoder_is_replaced(media):
    source, picture = media
    readers = SharedReaders(1, max_age_s=-1.0)
    read = readers.of("job", source, picture)
    list(read(0, 5))
    [first] = decoders()
    list(read(5, 9))
    assert decoders() != [first]
    readers.close()
