"""Spans of a video that speak, on decoded frames: what is outside them is the source."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musetalk_pipeline.face_choice import FaceAtPoint
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.options import EncodeOptions, FaceOptions, JobOptions, MediaLimits
from musetalk_pipeline.pipeline import FrameMemory, run
from musetalk_pipeline.pixels.picture import whole_picture
from musetalk_pipeline.time_options import TimeOptions
from musetalk_pipeline.video_spans import SpanAudio, VideoSpan
from tests.decoding import frames_of
from tests.media.test_chosen_face import WOMAN, Made, both
from tests.media.test_sync_modes import pitch, sound_of
from tests.media.two_people import write

LOSSLESS = JobOptions(encode=EncodeOptions(crf=0, preset="ultrafast"))
FPS = 25
JOBS_AUDIO = SpanAudio()


@pytest.fixture
def tone(tmp_path):
    """Return `tone(hz, seconds) -> file`."""

    def make(hz: int, seconds: float) -> Path:
        times = np.arange(round(seconds * 48_000)) / 48_000
        path = tmp_path / f"{hz}.wav"
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * times), 48_000)
        return path

    return make


@pytest.fixture
def talking(clip, tone, tmp_path):
    """Return a video of 50 frames with a face in each and a tone of 400 Hz."""
    path = tmp_path / "talking.mp4"
    command = ["ffmpeg", "-v", "error", "-i", clip(frames=50), "-i", tone(400, 2.0)]
    subprocess.run([*command, "-c:v", "copy", "-c:a", "aac", path], check=True, timeout=60)
    return path


def stored_frames(path: Path, folder: Path) -> np.ndarray:
    """Return all frames of a video as they are stored: (n, H * 3 // 2, W) uint8 I420."""
    folder.mkdir(exist_ok=True)
    source = probe_video(path, MediaLimits(), folder)
    return np.stack([*read_frames(source, whole_picture(source), 0, source.n_frames)])


@pytest.fixture
def spoken(talking, tools, tmp_path):
    """Return `spoken(time, audio, …) -> (frames, sound)`, with the source's in `.source`."""

    def make(time: TimeOptions, audio: Path, block_frames: int = 50):
        out = tmp_path / "out.mp4"
        memory = FrameMemory(block_bytes=320 * 240 * 3 // 2 * block_frames)
        result = run(talking, audio, out, replace(LOSSLESS, time=time), tools, memory=memory)
        frames = stored_frames(out, tmp_path / "after")
        assert len(frames) == result.frames
        return result, frames, sound_of(out)

    make.source = stored_frames(talking, tmp_path / "before")
    return make


def changed(frames: np.ndarray, source: np.ndarray) -> list[int]:
    """Return which frames differ from the source in any pixel."""
    return [at for at, pair in enumerate(zip(frames, source, strict=True)) if not _same(*pair)]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one, other))


def test_frames_outside_the_spans_are_the_source_to_the_bit_and_keep_its_sound(spoken, speech):
    time = TimeOptions(
        segments=(
            VideoSpan(1.2, 1.6, SpanAudio(start_s=1.0)),
            VideoSpan(0.04, 0.4, JOBS_AUDIO),
            VideoSpan(0.8, 1.0, None),
        )
    )
    result, frames, sound = spoken(time, speech(2.0), block_frames=8)
    drawn = {*range(1, 10), *range(30, 40)}
    assert set(changed(frames, spoken.source)) <= drawn
    assert len(changed(frames, spoken.source)) > 15  # a closed mouth may stay as it is
    assert result.frames_with_face == len(drawn)
    assert (pitch(sound, 0.5, 1.15), pitch(sound, 1.65, 1.95)) == pytest.approx((400, 400), abs=8)
    assert len(sound) / 16_000 == pytest.approx(2.0, abs=0.03)


@pytest.mark.slow
def test_a_span_speaks_what_its_audio_says(spoken, speech, tmp_path):
    """Its faces are those of a job whose audio is laid out by hand."""
    voice, rate = soundfile.read(speech(2.0))
    by_hand = np.zeros(round(2.0 * rate))
    by_hand[: round(0.8 * rate)] = voice[round(0.5 * rate) : round(1.3 * rate)]
    laid = tmp_path / "laid.wav"
    soundfile.write(laid, by_hand, rate, subtype="PCM_16")
    _, whole, _ = spoken(TimeOptions(), laid)
    segment = VideoSpan(0.0, 0.8, SpanAudio(start_s=0.5, end_s=1.3))
    _, frames, _ = spoken(TimeOptions(segments=(segment,)), speech(2.0))
    assert changed(frames[:20], whole[:20]) == []
    assert len(changed(whole[:20], spoken.source[:20])) > 10
    assert changed(frames[20:], spoken.source[20:]) == []


@pytest.mark.slow
def test_a_short_audio_is_followed_by_silence_and_a_long_one_is_cut(spoken, tone):
    time = TimeOptions(
        video_start_s=0.4,
        segments=(VideoSpan(0.8, 1.6, SpanAudio(end_s=0.4)), VideoSpan(1.6, 1.8, JOBS_AUDIO)),
    )
    _, frames, sound = spoken(time, tone(900, 1.0))
    assert changed(frames[:10], spoken.source[10:20]) == []
    assert pitch(sound, 0.02, 0.38) == pytest.approx(400, abs=8)
    assert pitch(sound, 0.45, 0.75) == pytest.approx(900, abs=8)
    assert pitch(sound, 0.85, 1.15) == 0
    assert pitch(sound, 1.22, 1.38) == pytest.approx(900, abs=10)
    assert pitch(sound, 1.42, 1.58) == pytest.approx(400, abs=10)


@pytest.mark.slow
def test_a_video_without_sound_is_silent_between_the_spans(clip, tone, tools, tmp_path):
    options = replace(LOSSLESS, time=TimeOptions(segments=(VideoSpan(0.4, 0.8, JOBS_AUDIO),)))
    out = tmp_path / "out.mp4"
    run(clip(frames=30), tone(900, 1.0), out, options, tools)
    sound = sound_of(out)
    assert (pitch(sound, 0.0, 0.38), pitch(sound, 0.82, 1.18)) == (0, 0)
    assert pitch(sound, 0.42, 0.78) == pytest.approx(900, abs=8)


@pytest.mark.slow
def test_a_chosen_person_speaks_in_the_spans_alone(speech, tools, tmp_path):
    """She is chosen in a frame of no span, before the part of the video that is used."""
    video, out = write(tmp_path / "people.mp4", [both()] * 30), tmp_path / "out.mp4"
    options = JobOptions(
        encode=LOSSLESS.encode,
        face=FaceOptions(face=FaceAtPoint(WOMAN, 2)),
        time=TimeOptions(
            video_start_s=0.2,
            segments=(VideoSpan(0.4, 0.6, JOBS_AUDIO), VideoSpan(0.8, 1.0, JOBS_AUDIO)),
        ),
    )
    result = run(video, speech(1.0), out, options, tools, block_s=0.5)
    job = Made(result, frames_of(video)[5:], frames_of(out))
    drawn = {*range(5, 10), *range(15, 20)}
    assert all(job.changed(n) == set() for n in set(range(25)) - drawn)
    assert set().union(*(job.changed(n) for n in drawn)) == {"left"}
    assert result.frames_with_face == 10
    assert result.warnings == ()
