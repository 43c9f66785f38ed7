"""What the warp engine encodes, from real speech and from sounds that are none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Speech, SpeechAudio
from musetalk_pipeline.engines.warp.audio_encoder import CLIPS_KEPT, HOP, LEAD_S, WarpAudioEncoder
from musetalk_pipeline.options import SpeechOptions
from musetalk_pipeline.plan import SAMPLE_RATE, Segment, plan_frames

FPS = Fraction(25)
Samples = NDArray[np.float32]
AudioOf = Callable[[Samples], SpeechAudio]


@pytest.fixture
def audio_of(tmp_path: Path) -> AudioOf:
    def make(samples: Samples) -> SpeechAudio:
        data = samples.astype("<f4").tobytes()
        digest = hashlib.sha256(data).hexdigest()
        path = tmp_path / f"{digest}.f32"
        path.write_bytes(data)
        seconds = len(samples) / SAMPLE_RATE
        return SpeechAudio(path, path, digest, len(data), len(samples), seconds)

    return make


@pytest.fixture(scope="module")
def voice(speech: Callable[..., Path]) -> Samples:
    samples, _ = soundfile.read(speech(6.0), dtype="float32")
    return samples


def encode(
    audio: SpeechAudio,
    start: int,
    end: int,
    fps: Fraction = FPS,
    encoder: WarpAudioEncoder | None = None,
) -> Speech:
    segment = Segment(0, start, end, 0, 0, 1)
    return (encoder or WarpAudioEncoder()).encode(audio, fps, segment, SpeechOptions())


def rms(samples: Samples, frames: int) -> Samples:
    size = SAMPLE_RATE // 25
    return np.sqrt((samples[: frames * size].reshape(frames, size) ** 2).mean(axis=1))


def tone(seconds: float, hz: float, level: float) -> Samples:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def test_shapes_are_one_row_a_frame_in_range(audio_of: AudioOf, voice: Samples) -> None:
    encoded = encode(audio_of(voice), 10, 90)
    assert encoded.features.shape == (80, 4) and encoded.features.dtype == np.float32
    assert encoded.loudness.shape == (80,) and encoded.loudness.dtype == np.float32
    for track in (encoded.features, encoded.loudness):
        assert np.isfinite(track).all() and track.min() >= 0.0 and track.max() <= 1.0


def test_opening_follows_the_loudness(audio_of: AudioOf, voice: Samples) -> None:
    opening = encode(audio_of(voice), 0, 150).features[:, 0]
    assert np.corrcoef(opening, rms(voice, 150))[0, 1] > 0.6
    assert opening.max() > 0.6 and opening.min() < 0.15


@pytest.mark.parametrize("gain", [0.1, 0.3, 3.0])
def test_quiet_and_loud_recordings_open_alike(
    audio_of: AudioOf, voice: Samples, gain: float
) -> None:
    plain, scaled = (encode(audio_of(x), 0, 150).features for x in (voice, voice * gain))
    assert np.abs(plain[:, 0] - scaled[:, 0]).mean() < 0.06


@pytest.mark.parametrize("level", [0.0, 1e-5, 1e-3])
def test_silence_and_quiet_noise_stay_closed(audio_of: AudioOf, level: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 3 * SAMPLE_RATE).astype(np.float32) * level
    encoded = encode(audio_of(noise), 0, 75)
    assert encoded.features.max() == 0.0 and encoded.loudness.max() == 0.0


def test_loud_steady_noise_is_not_speech(audio_of: AudioOf) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * SAMPLE_RATE).astype(np.float32)
    assert encode(audio_of(noise), 0, 75).features.max() == 0.0


def test_pauses_between_words_are_closed(audio_of: AudioOf, voice: Samples) -> None:
    rng = np.random.default_rng(0)
    pause = np.zeros(SAMPLE_RATE, np.float32)
    clip = np.concatenate([voice[: 2 * SAMPLE_RATE], pause, voice[2 * SAMPLE_RATE :]])
    clip = clip + rng.normal(0, 10 ** (-60 / 20), len(clip)).astype(np.float32)
    encoded = encode(audio_of(clip), 0, 150)
    assert encoded.features[57:70, 0].max() < 0.02  # 2.28 s to 2.8 s, within the pause
    assert encoded.loudness[58:68].max() < 0.05
    assert encoded.loudness[10:40].mean() > 0.7


def test_mouth_leads_a_burst_by_the_stated_time(audio_of: AudioOf) -> None:
    clip = np.zeros(2 * SAMPLE_RATE, np.float32)
    clip[SAMPLE_RATE : SAMPLE_RATE + 3200] = tone(0.2, 500, 0.3)  # 1.0 s to 1.2 s
    fps = Fraction(100)
    opening = encode(audio_of(clip), 0, 200, fps).features[:, 0]
    middle = float((opening * (np.arange(200) + 0.5) / 100).sum() / opening.sum())
    # It rises faster than it falls, so its weight lies a little later than the middle of the burst.
    assert middle == pytest.approx(1.1 - LEAD_S, abs=0.03)
    assert opening[90:100].max() > 0.3  # already open when the sound begins


def test_hiss_closes_the_teeth_and_vowel_opens(audio_of: AudioOf, voice: Samples) -> None:
    rng = np.random.default_rng(0)
    white = np.fft.rfft(rng.normal(0, 1, SAMPLE_RATE // 2))
    white[: len(white) // 2] = 0  # above 4 kHz: an s
    hiss = np.fft.irfft(white).astype(np.float32)
    hiss *= 0.05 / hiss.std()
    clip = np.concatenate([voice[: 3 * SAMPLE_RATE], hiss, voice[3 * SAMPLE_RATE :]])
    encoded = encode(audio_of(clip), 0, 160).features
    opening, _, _, teeth = encoded[77:84].mean(axis=0)
    assert teeth > 0.6 and 0.05 < opening < 0.35


def test_dark_vowels_round_and_bright_ones_spread(audio_of: AudioOf) -> None:
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(6):
        for formants in ((320, 800), (320, 2500)):  # u, i
            sound = sum(
                tone(0.25, f + rng.normal(0, 3), a)
                for f, a in zip((150, *formants), (0.05, 0.15, 0.1), strict=True)
            )
            parts += [sound, np.zeros(SAMPLE_RATE // 20, np.float32)]
    clip = np.concatenate(parts).astype(np.float32)
    fps = Fraction(10, 3)  # one frame a vowel
    _, wide, rounded, _ = encode(audio_of(clip), 0, 12, fps).features.T
    assert rounded[0::2].mean() > rounded[1::2].mean() + 0.3
    assert wide[1::2].mean() > wide[0::2].mean() + 0.3


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(60)])
def test_segments_in_any_order_give_the_same(
    audio_of: AudioOf, voice: Samples, fps: Fraction
) -> None:
    audio, count = audio_of(voice), 100
    whole = encode(audio, 0, count, fps)
    encoder = WarpAudioEncoder()
    segments = plan_frames(23, count, fps).segments
    for segment in reversed(segments):
        part = encoder.encode(audio, fps, segment, SpeechOptions())
        rows = slice(segment.start, segment.end)
        np.testing.assert_array_equal(part.features, whole.features[rows])
        np.testing.assert_array_equal(part.loudness, whole.loudness[rows])


def test_a_whole_frame_rate_encodes_at_29_what_plays_at_29_97(
    audio_of: AudioOf, voice: Samples
) -> None:
    audio, segment = audio_of(voice), Segment(0, 50, 100, 0, 0, 1)
    whole = SpeechOptions(frame_rate="whole")
    cut = WarpAudioEncoder().encode(audio, Fraction(30000, 1001), segment, whole)
    np.testing.assert_array_equal(cut.features, encode(audio, 50, 100, Fraction(29)).features)
    assert not np.array_equal(cut.features, encode(audio, 50, 100, Fraction(30000, 1001)).features)


def test_chunks_leave_no_seam(audio_of: AudioOf, voice: Samples) -> None:
    # A clip longer than a chunk, whose second half repeats the first a whole number of hops later.
    period = len(voice) // HOP * HOP
    clip = np.tile(voice[:period], 7)  # 42 s
    encoded = encode(audio_of(clip), 0, 1050).features[:, 0]
    frames = period * 25 // SAMPLE_RATE
    inner = np.arange(10, frames - 10)
    for repeat in range(1, 7):
        np.testing.assert_allclose(encoded[inner + repeat * frames], encoded[inner], atol=1e-4)


def test_frames_past_the_end_are_closed(audio_of: AudioOf, voice: Samples) -> None:
    encoded = encode(audio_of(voice[:SAMPLE_RATE]), 20, 60)
    assert encoded.features[12:].max() == 0.0 and encoded.loudness[12:].max() == 0.0


@pytest.mark.parametrize("samples", [1, 159, 1280])
def test_very_short_clips_are_encoded(audio_of: AudioOf, voice: Samples, samples: int) -> None:
    assert encode(audio_of(voice[:samples]), 0, 2).features.shape == (2, 4)


def test_broken_samples_do_not_spread(audio_of: AudioOf, voice: Samples) -> None:
    broken = voice.copy()
    broken[5000:5010] = np.nan
    broken[9000] = np.inf
    assert np.isfinite(encode(audio_of(broken), 0, 150).features).all()


def test_memory_of_clips_is_bounded_and_right(audio_of: AudioOf, voice: Samples) -> None:
    encoder = WarpAudioEncoder()
    clips = [audio_of(voice[i * 1000 :]) for i in range(CLIPS_KEPT + 2)]
    first = [encode(clip, 0, 20, encoder=encoder).features for clip in clips]
    assert len(encoder._clips) == CLIPS_KEPT
    # Forgotten clips are encoded again, with the same result.
    for clip, expected in zip(clips, first, strict=True):
        np.testing.assert_array_equal(encode(clip, 0, 20, encoder=encoder).features, expected)


def test_as_many_clips_are_kept_as_jobs_run(audio_of: AudioOf, voice: Samples) -> None:
    """Mend 3.4: jobs that take turns must find what they have encoded."""
    encoder = WarpAudioEncoder(jobs=8)
    for clip in [audio_of(voice[i * 1000 :]) for i in range(8)]:
        encode(clip, 0, 20, encoder=encoder)
    assert len(encoder._clips) == 8


def test_a_kept_clip_needs_no_file(audio_of: AudioOf, voice: Samples) -> None:
    encoder, audio = WarpAudioEncoder(), audio_of(voice)
    expected = encode(audio, 0, 50, encoder=encoder).features
    gone = replace(audio, pcm_path=audio.pcm_path.with_name("gone"))
    np.testing.assert_array_equal(encode(gone, 0, 50, encoder=encoder).features, expected)
