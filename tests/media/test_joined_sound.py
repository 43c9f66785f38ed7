"""Sounds that are joined from parts of many files: in place to the sample, by a few decoders."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from musetalk_pipeline.artifacts import SoundPart, SpeechAudio
from musetalk_pipeline.media.joined_sound import MOST_DECODERS, at_rate, join_sound
from musetalk_pipeline.media.speech_audio import make_track, open_audio
from musetalk_pipeline.options import MediaLimits

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # one for each sound
PART = 1600  # samples at 16 kHz


def sounds(folder: Path) -> list[SpeechAudio]:
    """Return sounds of half a second that differ by their level, each at a rate of its own."""
    made = []
    for number, level in enumerate(LEVELS):
        path, rate = folder / f"{number}.wav", (16_000, 44_100, 48_000)[number % 3]
        soundfile.write(path, np.full(rate // 2, level), rate, subtype="PCM_16")
        made.append(open_audio(path, folder, MediaLimits(), track_within_s=-1.0))
    return made


@pytest.mark.slow
def test_parts_of_many_sounds_are_decoded_by_a_few_decoders(tmp_path):
    files = sounds(tmp_path)
    levels = [*LEVELS, *reversed(LEVELS), LEVELS[0], 0.0]
    turns = [*files, *reversed(files), files[0], None]
    parts = [SoundPart(one, 0, PART) for one in turns]
    heard, running = [], []
    others = {*psutil.Process().children()}  # of other tests in this process
    with closing(at_rate(parts, 48_000, 1, MediaLimits())) as chunks:
        for chunk in chunks:
            heard.append(chunk)
            running.append(len({*psutil.Process().children()} - others))
    assert 2 <= max(running) <= MOST_DECODERS
    assert means(np.concatenate(heard, axis=1)[0], 3 * PART) == pytest.approx(levels, abs=2e-3)

    joined = join_sound(files[0], parts, tmp_path)
    samples = np.fromfile(joined.pcm_path, "<f4")
    assert joined.n_samples == len(samples) == PART * len(parts)
    assert means(samples, PART) == pytest.approx(levels, abs=1e-3)
    assert make_track(joined, MediaLimits()).is_tracked and joined.track_path.stat().st_size > 1000


def means(samples: np.ndarray, length: int) -> list[float]:
    """Return the mean of the middle of each part."""
    middles = samples.reshape(-1, length)[:, length // 4 : -length // 4]
    return [float(mean) for mean in middles.mean(axis=1)]
