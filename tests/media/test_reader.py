"""One decoder for many ranges: the same frames as with one for each, and no more than needed."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.media.reader import RunningReader
from musetalk_pipeline.options import FrameOptions, MediaLimits
from musetalk_pipeline.pixels.picture import fit_picture
from tests.children import children_named


@pytest.fixture(params=[False, True], ids=["constant rate", "variable rate"])
def media(request, clip, tmp_path):
    source = probe_video(clip(frames=40, is_variable_rate=request.param), MediaLimits(), tmp_path)
    return source, fit_picture(source, FrameOptions(), ())


def decoders() -> list[psutil.Process]:
    return children_named("ffmpeg")


def test_ranges_in_and_out_of_order_are_the_same_frames(media):
    source, picture = media
    whole = np.stack(list(read_frames(source, picture, 0, source.n_frames)))
    with RunningReader(source, picture, source.n_frames) as read:
        for start, end in ((0, 7), (7, 20), (20, 21), (5, 9), (9, 30), (30, 40)):
            np.testing.assert_array_equal(np.stack(list(read(start, end))), whole[start:end])
    assert not decoders()


def test_consecutive_ranges_share_a_decoder(media):
    source, picture = media
    with RunningReader(source, picture, source.n_frames) as read:
        list(read(0, 5))
        [first] = decoders()
        list(read(5, 9))
        assert decoders() == [first]
        list(read(20, 22))
        assert decoders() != [first]


def test_a_range_that_was_left_early_does_not_shift_the_next(media):
    source, picture = media
    whole = list(read_frames(source, picture, 0, source.n_frames))
    with RunningReader(source, picture, source.n_frames) as read:
        left = read(0, 10)
        next(left)
        left.close()
        np.testing.assert_array_equal(next(read(10, 12)), whole[10])


def test_an_old_decoder_is_replaced(media):
    """Its deadline runs on while the networks compute; a new one has the whole of it left."""
    source, picture = media
    with RunningReader(source, picture, source.n_frames, max_age_s=-1.0) as read:
        list(read(0, 5))
        [first] = decoders()
        frames = list(read(5, 9))
        assert decoders() != [first]
    np.testing.assert_array_equal(frames, list(read_frames(source, picture, 5, 9)))
