"""Windows of sound: at the right time at every frame rate, to the end, in any order."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import SpeechAudio
from musetalk_pipeline.engines.musetalk.audio_encoder import (
    WhisperAudioEncoder,
    chunk_at,
    count_steps,
    window_places,
    window_starts,
)
from musetalk_pipeline.networks.whisper import CHUNK_SAMPLES, ChunkEncoder, load_whisper
from musetalk_pipeline.options import SpeechOptions
from musetalk_pipeline.plan import SAMPLE_RATE, Segment, count_output_frames, plan_frames
from musetalk_pipeline.sound.loudness import count_spoken, frame_loudness

OPTIONS = SpeechOptions()
RATES = [Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30)]
RATES += [Fraction(50), Fraction(60), Fraction(60000, 1001), Fraction(12), Fraction(120)]


@pytest.fixture(scope="module")
def audio_encoder(models: Path) -> WhisperAudioEncoder:
    return WhisperAudioEncoder(models)


def sound(folder: Path, samples: NDArray[np.float32]) -> SpeechAudio:
    """Return a 16 kHz sound as the probe leaves it."""
    path = folder / f"{len(samples)}.f32"
    samples.astype("<f4").tofile(path)
    digest = f"{len(samples)}-{float(np.abs(samples).sum())}"
    return SpeechAudio(
        path, path, digest, 4 * len(samples), len(samples), len(samples) / SAMPLE_RATE
    )


def noise(seconds: float) -> NDArray[np.float32]:
    """Return noise whose loudness comes and goes, so that no two windows are alike."""
    count = round(seconds * SAMPLE_RATE)
    wave = np.sin(np.arange(count) / SAMPLE_RATE * 3) ** 2
    return (0.2 * wave * np.random.default_rng(4).standard_normal(count)).astype(np.float32)


def frames(start: int, end: int) -> Segment:
    return Segment(0, start, end, 0, 0, 1)


@pytest.mark.parametrize("fps", RATES)
def test_every_window_begins_80_ms_before_its_frame_to_the_end_of_ten_minutes(
    fps: Fraction,
) -> None:
    count = math.floor(600 * fps)
    starts = window_starts(fps, 0, count, OPTIONS)
    late = [frame * 50 / fps - (start + 4) for frame, start in enumerate(starts)]
    assert all(0 <= steps < 1 for steps in late)  # never a whole step of 20 ms off


def test_25_fps_is_the_reference() -> None:
    assert window_starts(Fraction(25), 0, 500, OPTIONS) == [2 * i - 4 for i in range(500)]


@pytest.mark.parametrize(("fps", "short"), [(29, [145, 290, 551]), (31, [155, 310, 589])])
def test_whole_rates_are_the_reference_in_double_precision(fps: int, short: list[int]) -> None:
    """At 29 and 31 fps `i * (50 / fps)` falls short of a whole step at some frames."""
    starts = window_starts(Fraction(fps), 0, 600, OPTIONS)
    assert starts == [math.floor(i * (50 / fps)) - 4 for i in range(600)]
    assert [i for i in range(600) if starts[i] != i * 50 // fps - 4][:3] == short


@pytest.mark.parametrize("fps", RATES)
def test_a_window_of_five_frames_reaches_two_frames_back_and_three_ahead(fps: Fraction) -> None:
    """Q11: the reference's window is 200 ms, five frames at 25 fps alone."""
    windows = window_places(fps, 0, 500, SpeechOptions(window_span="frames"))
    step = Fraction(1, 50)
    for frame, window in enumerate(windows.tolist()):
        for half, place in enumerate(window):
            middle = (frame - 2 + Fraction(2 * half + 1, 4)) / fps
            assert place * step <= middle < (place + 1) * step


def test_both_spans_are_the_same_at_25_fps_and_differ_elsewhere() -> None:
    by_frames = SpeechOptions(window_span="frames", audio_padding_left=1, audio_padding_right=3)
    by_time = SpeechOptions(audio_padding_left=1, audio_padding_right=3)
    for fps, same in ((Fraction(25), True), (Fraction(24), False), (Fraction(50), False)):
        places = [window_places(fps, 5, 90, options) for options in (by_frames, by_time)]
        assert np.array_equal(*places) == same
    assert window_places(Fraction(50), 7, 8, SpeechOptions(window_span="frames"))[0].tolist() == [
        5, 5, 6, 6, 7, 7, 8, 8, 9, 9
    ]  # fmt: skip


def test_windows_have_the_span_that_is_asked_for(
    audio_encoder: WhisperAudioEncoder, tmp_path: Path
) -> None:
    audio, options = sound(tmp_path, noise(2.0)), SpeechOptions(window_span="frames")
    every_step = audio_encoder.encode(audio, Fraction(50), frames(20, 80), OPTIONS).features
    encoded = audio_encoder.encode(audio, Fraction(50), frames(30, 40), options).features
    # At 50 fps a frame is a step, so the first row of a plain window is the step 4 before it.
    steps = every_step.reshape(60, 10, 5, 384)[:, 4]
    for row, window in enumerate(encoded.reshape(10, 10, 5, 384)):
        expected = steps[[30 + row - 20 + k for k in (-2, -2, -1, -1, 0, 0, 1, 1, 2, 2)]]
        assert np.array_equal(window, expected)


def test_a_whole_frame_rate_encodes_at_29_what_plays_at_29_97(
    audio_encoder: WhisperAudioEncoder, tmp_path: Path
) -> None:
    """Q7: frame 58 plays at 1.935 s, and shows what is spoken at 2 s."""
    audio, whole = sound(tmp_path, noise(3.0)), SpeechOptions(frame_rate="whole")
    ntsc, later = Fraction(30000, 1001), frames(58, 62)
    cut = audio_encoder.encode(audio, ntsc, later, whole)
    exact = audio_encoder.encode(audio, ntsc, later, OPTIONS)
    at_29 = audio_encoder.encode(audio, Fraction(29), later, OPTIONS)
    assert np.array_equal(cut.features, at_29.features)
    assert not np.array_equal(cut.features, exact.features)


@pytest.mark.parametrize(
    ("fps", "steps_early"), [(12, 6), (24, 2), (25, 0), (30, 0), (49, 0), (50, -2), (60, -2)]
)
def test_the_reference_placement_depends_on_the_frame_rate(fps: int, steps_early: int) -> None:
    fixed = window_starts(Fraction(fps), 0, 100, OPTIONS)
    moved = window_starts(Fraction(fps), 0, 100, SpeechOptions(window_placement="reference"))
    assert {f - m for f, m in zip(fixed, moved, strict=True)} == {steps_early}


@pytest.mark.parametrize("fps", RATES)
def test_windows_reach_the_last_frame(
    audio_encoder: WhisperAudioEncoder, tmp_path: Path, fps: Fraction
) -> None:
    audio = sound(tmp_path, noise(1.5))
    count = count_output_frames(audio.n_samples, fps)
    encoded = audio_encoder.encode(audio, fps, frames(0, count), OPTIONS)
    assert encoded.features.shape == (count, 50, 384)
    assert encoded.loudness.shape == (count,)
    steps = encoded.features.reshape(count, 10, 5, 384)
    # The last frame's own moment is the fifth step of its window: sound, not padding.
    assert np.abs(steps[-1, 4]).max() > 0
    assert np.isfinite(encoded.features).all()


def test_frames_of_one_instant_have_the_same_features_at_every_rate(
    audio_encoder: WhisperAudioEncoder, tmp_path: Path
) -> None:
    audio = sound(tmp_path, noise(2.0))
    at_one_second = [
        audio_encoder.encode(audio, Fraction(fps), frames(fps, fps + 1), OPTIONS).features
        for fps in (24, 25, 30, 50, 60)
    ]
    assert all(np.array_equal(at_one_second[0], other) for other in at_one_second[1:])


def test_outside_the_sound_is_silence_not_the_sound_itself(
    models: Path, audio_encoder: WhisperAudioEncoder, tmp_path: Path
) -> None:
    samples = noise(0.08)  # the shortest that is accepted: two frames, four steps
    audio = sound(tmp_path, samples)
    assert count_steps(audio.n_samples) == 4
    assert count_output_frames(audio.n_samples, Fraction(25)) == 2
    states = load_whisper(models / "whisper").encode(samples)[:4]
    windows = audio_encoder.encode(audio, Fraction(25), frames(0, 2), OPTIONS).features
    first, second = windows.reshape(2, 10, 5, 384)
    assert np.array_equal(first[4:8], states)
    assert np.array_equal(second[2:6], states)
    assert not first[:4].any() and not first[8:].any()
    assert not second[:2].any() and not second[6:].any()


def test_order_of_segments_does_not_matter(models: Path, tmp_path: Path) -> None:
    audio, fps = sound(tmp_path, noise(62.0)), Fraction(25)
    plan = plan_frames(80, count_output_frames(audio.n_samples, fps), fps)
    in_order, shuffled = WhisperAudioEncoder(models), WhisperAudioEncoder(models)
    expected = {s.index: in_order.encode(audio, fps, s, OPTIONS) for s in plan.segments}
    mixed = list(plan.segments)
    random.Random(1).shuffle(mixed)
    for segment in mixed[:12]:
        encoded = shuffled.encode(audio, fps, segment, OPTIONS)
        assert np.array_equal(encoded.features, expected[segment.index].features)
        assert np.array_equal(encoded.loudness, expected[segment.index].loudness)


def test_a_window_across_the_seam_has_both_chunks(models: Path, tmp_path: Path) -> None:
    samples = noise(30.4)
    encoder = load_whisper(models / "whisper")
    before, after = encoder.encode(samples[:CHUNK_SAMPLES]), encoder.encode(samples[CHUNK_SAMPLES:])
    encoded = WhisperAudioEncoder(models).encode(
        sound(tmp_path, samples), Fraction(25), frames(750, 751), OPTIONS
    )
    steps = encoded.features.reshape(10, 5, 384)
    assert np.array_equal(steps[:4], before[-4:])
    assert np.array_equal(steps[4:], after[:6])


def test_overlapping_chunks_have_the_features_of_a_chunk_without_a_seam(
    models: Path, tmp_path: Path
) -> None:
    """Q10: a sound at a seam is cut in two halves, each encoded against silence."""
    samples, audio_encoder = noise(58.0), WhisperAudioEncoder(models)
    # Without positions a step does not tell where in its chunk it lies, only what is around it.
    torch.nn.init.zeros_(audio_encoder._chunk_encoder._encoder.embed_positions.weight)
    seamless = audio_encoder._chunk_encoder.encode(samples[15 * SAMPLE_RATE : 45 * SAMPLE_RATE])
    audio = sound(tmp_path, samples)
    errors = {}
    for overlap_s, seam_s in ((0.0, 30), (2.0, 29)):
        options = SpeechOptions(chunk_overlap_s=overlap_s)
        around = slice(seam_s * 50 - 3, seam_s * 50 + 3)
        encoded = audio_encoder._steps(audio, around.start, around.stop, round(50 * overlap_s))
        window = audio_encoder.encode(
            audio, Fraction(25), frames(seam_s * 25, seam_s * 25 + 1), options
        )
        assert np.array_equal(window.features.reshape(10, 5, 384)[1:7], encoded)
        truth = seamless[around.start - 750 : around.stop - 750]
        errors[overlap_s] = np.sqrt(((encoded - truth) ** 2).mean((0, 2)))  # of each layer
    assert (errors[2.0] < errors[0.0] / 2).all()
    assert errors[2.0][0] < 1e-6  # what enters the first layer is the sound itself


@pytest.mark.parametrize("overlap", [0, 1, 100, 101, 500])
@pytest.mark.parametrize("n_steps", [1, 1499, 1500, 1501, 1550, 2900, 2901, 9999])
def test_chunks_share_the_sound_without_gaps(overlap: int, n_steps: int) -> None:
    step, chunks = 0, 0
    while step < n_steps:
        offset, end = chunk_at(step, n_steps, overlap)
        assert offset <= step < end <= min(n_steps, offset + 1500)
        assert chunk_at(end - 1, n_steps, overlap) == (offset, end)
        # Away from the ends of the sound both neighbours of a seam reach past it.
        assert step == 0 or step - offset >= overlap // 2
        assert end == n_steps or offset + 1500 - end >= overlap // 2
        step, chunks = end, chunks + 1
    assert chunks == max(1, math.ceil((n_steps - overlap) / (1500 - overlap)))


def test_up_to_30_s_there_is_no_seam_to_avoid(
    audio_encoder: WhisperAudioEncoder, tmp_path: Path
) -> None:
    audio, options = sound(tmp_path, noise(29.9)), SpeechOptions(chunk_overlap_s=2.0)
    late = frames(720, 747)
    one = audio_encoder.encode(audio, Fraction(25), late, options).features
    assert np.array_equal(one, audio_encoder.encode(audio, Fraction(25), late, OPTIONS).features)


class Counting:
    """Notes the length of each chunk, and passes it on or answers with zeros."""

    def __init__(self, inner: ChunkEncoder | None = None) -> None:
        self.lengths: list[int] = []
        self._inner = inner
        self._zeros = np.zeros((1500, 5, 384), np.float32)

    def encode(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        self.lengths.append(len(samples))
        return self._zeros if self._inner is None else self._inner.encode(samples)


def test_only_the_chunks_that_are_needed_are_encoded_and_few_are_kept(
    models: Path, tmp_path: Path
) -> None:
    counting = Counting(load_whisper(models / "whisper"))
    audio_encoder = WhisperAudioEncoder(models, load=lambda *_: counting)
    audio, fps = sound(tmp_path, noise(125.0)), Fraction(25)
    # The first segment touches the second chunk's end too.
    audio_encoder.encode(audio, fps, frames(1500, 1550), OPTIONS)
    assert counting.lengths == [CHUNK_SAMPLES] * 2
    audio_encoder.encode(audio, fps, frames(1550, 1600), OPTIONS)
    assert len(counting.lengths) == 2  # kept
    for chunk in range(5):
        audio_encoder.encode(audio, fps, frames(750 * chunk + 100, 750 * chunk + 110), OPTIONS)
    assert len(counting.lengths) == 5
    assert len(audio_encoder._chunks) == 3
    assert counting.lengths[-1] == 5 * SAMPLE_RATE  # the last chunk is short


def test_concurrent_jobs_encode_each_chunk_once(models: Path, tmp_path: Path) -> None:
    """Mend 3.4: three chunks were kept for any number of jobs. Four jobs that took turns encoded
    240 chunks instead of 16.
    """
    counting = Counting()
    audio_encoder = WhisperAudioEncoder(models, jobs=4, load=lambda *_: counting)
    sounds = [sound(tmp_path, np.zeros(120 * SAMPLE_RATE - i, np.float32)) for i in range(4)]
    for segment in range(60):
        for audio in sounds:
            span = frames(50 * segment, 50 * segment + 50 - (segment == 59))
            audio_encoder.encode(audio, Fraction(25), span, OPTIONS)
    assert len(counting.lengths) == 16


def test_kept_chunks_are_bounded_in_bytes(models: Path, tmp_path: Path) -> None:
    """Mend 3.4: whatever the number of jobs, half a gigabyte of features is the most."""
    audio_encoder = WhisperAudioEncoder(models, jobs=64, load=lambda *_: Counting())
    audio = sound(tmp_path, np.zeros(60 * 30 * SAMPLE_RATE, np.float32))
    for chunk in range(60):
        at = 750 * chunk + 100
        audio_encoder.encode(audio, Fraction(25), frames(at, at + 1), OPTIONS)
    assert sum(chunk.nbytes for chunk in audio_encoder._chunks.values()) <= 512 << 20
    assert len(audio_encoder._chunks) > 40


def test_longer_paddings_make_longer_windows(
    audio_encoder: WhisperAudioEncoder, tmp_path: Path
) -> None:
    audio = sound(tmp_path, noise(1.0))
    wide = SpeechOptions(audio_padding_left=3, audio_padding_right=4)
    encoded = audio_encoder.encode(audio, Fraction(25), frames(10, 12), wide).features
    usual = audio_encoder.encode(audio, Fraction(25), frames(10, 12), OPTIONS).features
    assert encoded.shape == (2, 80, 384)
    assert np.array_equal(encoded[:, 10:60], usual)


def test_loudness_is_one_in_speech_and_zero_in_silence(tmp_path: Path) -> None:
    samples = noise(6.0)
    samples[: 2 * SAMPLE_RATE] = 0.001 * np.random.default_rng(1).standard_normal(2 * SAMPLE_RATE)
    samples[2 * SAMPLE_RATE :] = 0.1 * np.random.default_rng(2).standard_normal(4 * SAMPLE_RATE)
    weights = frame_loudness(sound(tmp_path, samples).pcm_path, Fraction(25), 0, 150)
    assert weights[:45].max() == 0
    assert weights[52:].min() == 1
    assert (np.diff(weights) >= 0).all()  # it opens once, gradually
    assert 0 < weights[47] < 1


def test_digital_silence_is_silent_to_the_end(tmp_path: Path) -> None:
    audio = sound(tmp_path, np.zeros(SAMPLE_RATE, np.float32))
    assert not frame_loudness(audio.pcm_path, Fraction(30), 0, 30).any()


def test_loudness_does_not_depend_on_how_it_is_cut(tmp_path: Path) -> None:
    audio, fps = sound(tmp_path, noise(20.0)), Fraction(30000, 1001)
    whole = frame_loudness(audio.pcm_path, fps, 0, 590)
    pieces = [frame_loudness(audio.pcm_path, fps, at, at + 59) for at in range(0, 590, 59)]
    assert np.array_equal(whole, np.concatenate(pieces))


def test_the_frames_at_which_somebody_speaks_are_counted_exactly_in_a_short_sound(
    tmp_path: Path,
) -> None:
    samples = noise(30.0)
    samples[8 * SAMPLE_RATE : 15 * SAMPLE_RATE] = 0.0
    path, fps = sound(tmp_path, samples).pcm_path, Fraction(30000, 1001)
    spans = [range(100, 300), range(310, 311), range(400, 890)]
    spoken = sum(np.count_nonzero(frame_loudness(path, fps, s.start, s.stop)) for s in spans)
    assert 0 < spoken < sum(map(len, spans))
    assert count_spoken(path, fps, spans) == spoken
    assert count_spoken(path, fps, []) == 0


@pytest.mark.parametrize("period_s", [7, 20])
def test_in_a_long_sound_the_frames_with_speech_are_estimated_whatever_its_rhythm(
    tmp_path: Path, period_s: int
) -> None:
    seconds, fps = 300, Fraction(25)
    samples = np.tile(noise(10.0), seconds // 10)
    samples[np.arange(len(samples)) % (period_s * SAMPLE_RATE) >= period_s * SAMPLE_RATE // 3] = 0
    counted = count_spoken(sound(tmp_path, samples).pcm_path, fps, [range(seconds * 25)])
    assert counted / (seconds * 25) == pytest.approx(0.4, abs=0.15)  # fades and holds count too
