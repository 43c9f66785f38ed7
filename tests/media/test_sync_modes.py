"""Sync modes and trims on decoded frames: how many, in which order, and what is heard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from musetalk_pipeline.errors import InvalidOptions
from musetalk_pipeline.options import EncodeOptions, JobOptions
from musetalk_pipeline.pipeline import FrameMemory, run
from musetalk_pipeline.time_options import TimeOptions
from tests.decoding import frames_of

# Lossless, and without a face in most frames: what is decoded is exactly the source's frame.
LOSSLESS = JobOptions(encode=EncodeOptions(crf=0, preset="ultrafast"))
FRAMES = 20
FACELESS = frozenset(range(FRAMES)) - {0, 5, 10}


@pytest.fixture
def made(clip, tools, tmp_path):
    """Return `made(audio, options) -> (source frame of each output frame, sound)`."""
    video = clip(frames=FRAMES, faceless=FACELESS)
    sources = frames_of(video)

    def number_of(frame: np.ndarray) -> int:
        """Return which source frame this is; those with a face differ around the mouth only."""
        far = [np.abs(frame[::8, ::8].astype(int) - source[::8, ::8]).sum() for source in sources]
        return int(np.argmin(far))

    def make(audio: Path, time: TimeOptions, block_frames: int = 6) -> tuple[list[int], np.ndarray]:
        out = tmp_path / "out.mp4"
        memory = FrameMemory(block_bytes=320 * 240 * 3 // 2 * block_frames)
        result = run(video, audio, out, replace(LOSSLESS, time=time), tools, memory=memory)
        frames = frames_of(out)
        assert len(frames) == result.frames
        numbers = [number_of(frame) for frame in frames]
        for number, frame in zip(numbers, frames, strict=True):
            if number in FACELESS:
                np.testing.assert_array_equal(frame, sources[number])
        return numbers, sound_of(out)

    return make


def sound_of(path: Path) -> np.ndarray:
    """Return the sound of a file at 16 kHz, one channel."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
        parts = [
            out.to_ndarray()[0]
            for frame in container.decode(audio=0)
            for out in resampler.resample(frame)
        ]
    return np.concatenate(parts)


@pytest.fixture
def beeps(tmp_path):
    """Return `beeps(*hz) -> file` with a tone of each pitch, 0.4 s each."""

    def make(*pitches: int, rate: int = 44_100, channels: int = 2) -> Path:
        times = np.arange(round(0.4 * rate)) / rate
        tones = [0.3 * np.sin(2 * np.pi * hz * times) for hz in pitches]
        path = tmp_path / "beeps.wav"
        soundfile.write(path, np.repeat(np.concatenate(tones)[:, None], channels, axis=1), rate)
        return path

    return make


def pitch(sound: np.ndarray, start_s: float, end_s: float) -> int:
    """Return the loudest frequency of a stretch of sound in Hz; 0 if it is silent."""
    part = sound[round(start_s * 16_000) : round(end_s * 16_000)]
    if np.sqrt(np.mean(part**2)) < 0.003:
        return 0
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
    return round(float(np.argmax(spectrum)) * 16_000 / len(part))


BACK_AND_FORTH = [*range(20), *reversed(range(20)), *range(20)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "seconds", "expected"),
    [
        ("bounce", 2.0, BACK_AND_FORTH[:50]),
        ("loop", 2.0, [k % 20 for k in range(50)]),
        ("cut_off", 2.0, list(range(20))),
        ("cut_off", 0.48, list(range(12))),
        ("silence", 2.0, BACK_AND_FORTH[:50]),
        ("silence", 0.48, list(range(20))),
        ("remap", 2.0, [k * 20 // 50 for k in range(50)]),
        ("remap", 0.48, [k * 20 // 12 for k in range(12)]),
    ],
)
def test_the_frames_of_a_mode_are_counted_and_ordered_as_documented(
    made, speech, mode, seconds, expected
):
    numbers, _ = made(speech(seconds), TimeOptions(mode))
    assert numbers == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "expected"),
    [("loop", [10 + k % 4 for k in range(30)]), ("remap", [10 + k * 4 // 30 for k in range(30)])],
)
def test_a_source_that_is_shorter_than_a_block_keeps_its_order(made, speech, mode, expected):
    time = TimeOptions(mode, video_start_s=0.4, video_end_s=0.56)
    numbers, _ = made(speech(1.2), time, block_frames=25)
    assert numbers == expected


@pytest.mark.slow
def test_silence_is_heard_after_the_sound_and_the_whole_video_is_kept(made, beeps):
    numbers, sound = made(beeps(500), TimeOptions("silence"))
    assert numbers == list(range(20))
    assert pitch(sound, 0.05, 0.35) == pytest.approx(500, abs=8)
    assert pitch(sound, 0.45, 0.75) == 0
    assert len(sound) / 16_000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.slow
def test_trims_choose_frames_and_sound(made, beeps):
    time = TimeOptions(video_start_s=0.2, video_end_s=0.6, audio_start_s=0.4, audio_end_s=1.2)
    numbers, sound = made(beeps(300, 600, 900, 1200), time)
    assert numbers == [*range(5, 15), *reversed(range(5, 15))]
    assert pitch(sound, 0.05, 0.35) == pytest.approx(600, abs=8)
    assert pitch(sound, 0.45, 0.75) == pytest.approx(900, abs=8)


@pytest.mark.slow
def test_the_mouth_follows_the_part_of_the_sound_that_is_used(clip, speech, tools, tmp_path):
    """The drawn faces are those of a file that holds that part alone."""
    video, audio = clip(frames=15), speech(2.0)
    samples, rate = soundfile.read(audio)
    alone = tmp_path / "alone.wav"
    soundfile.write(alone, samples[rate // 2 : rate // 2 * 2 + rate // 10], rate, subtype="PCM_16")
    cut = replace(LOSSLESS, time=TimeOptions(audio_start_s=0.5, audio_end_s=1.1))
    results = []
    for options, sound in ((cut, audio), (LOSSLESS, alone)):
        out = tmp_path / f"{len(results)}.mp4"
        run(video, sound, out, options, tools)
        results.append(frames_of(out))
    np.testing.assert_array_equal(*results)


def test_a_time_beyond_the_video_is_refused_with_its_length(clip, speech, tools, tmp_path):
    options = replace(LOSSLESS, time=TimeOptions(video_start_s=7))
    with pytest.raises(InvalidOptions, match=r"`video_start_s` is 7, but the video lasts 0.40 s"):
        run(clip(frames=10), speech(0.4), tmp_path / "out.mp4", options, tools)
    assert list(tmp_path.iterdir()) == []
