"""The stages from a sound file to the windows that steer the mouth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from musetalk_pipeline.engines.musetalk.audio_encoder import count_steps, cut_windows, window_places
from musetalk_pipeline.networks.whisper import CHUNK_SAMPLES, load_whisper
from musetalk_pipeline.plan import SAMPLE_RATE, count_output_frames

from .golden import (
    SPEECH,
    GoldenSet,
    IncompleteSet,
    frames_of,
    librosa_length,
    named_frames,
    numbers_in,
    samples_of,
)
from .report import EXACT, Row, Tolerance, compare, compare_stored_as_half, miss

MEL = Tolerance(1e-5)
HIDDEN = Tolerance(2e-5)


def check_short(golden: GoldenSet) -> Iterator[Row]:
    """Mel, encoder states, windows: of the speech that the frames are generated from."""
    stage, arrays = "audio_short", golden.load("audio_short")
    audio, encoder = golden.short_audio, load_whisper(golden.models / "whisper")
    yield compare(stage, "nsamples", audio.n_samples, arrays["nsamples"])
    yield compare(
        stage, "count", count_output_frames(audio.n_samples, golden.fps), arrays["count"]
    ).noting(f"at {golden.fps} fps")
    mel = encoder.mel(samples_of(audio)[:CHUNK_SAMPLES])
    head, tail = arrays["mel"].shape[-1], arrays["mel_tail"].shape[-1]
    yield compare(stage, "mel", mel[None, :, :head], arrays["mel"], MEL)
    yield compare(stage, "mel_tail", mel[None, :, -tail:], arrays["mel_tail"], MEL)
    hidden, prompts = arrays["hidden"][0], arrays["prompts"]
    yield compare(stage, "hidden", encoder.states(mel)[: len(hidden)], hidden, HIDDEN)
    stored = frames_of(prompts, golden.windows)
    yield _golden_windows(golden, hidden, prompts, stored)
    chain = compare(stage, "prompts (chain)", golden.windows[stored], prompts, HIDDEN)
    yield chain.noting(named_frames(stored))


def _golden_windows(
    golden: GoldenSet,
    hidden: NDArray[np.float32],
    prompts: NDArray[np.float32],
    stored: Sequence[int],
) -> Row:
    """Cut windows from the stored encoder states, as far as those reach."""
    name = "prompts (of golden states)"
    places = window_places(golden.fps, 0, max(stored) + 1, SPEECH)
    n_steps = count_steps(golden.short_audio.n_samples)
    reach = len(hidden)
    if n_steps <= reach:  # all of the sound is stored: what follows is silence
        reach = int(places[-1, -1]) + 1
        silence = np.zeros((max(0, reach - n_steps), *hidden.shape[1:]), np.float32)
        hidden = np.concatenate([hidden[:n_steps], silence])
    before = -int(places[0, 0])
    steps = np.concatenate([np.zeros((before, *hidden.shape[1:]), np.float32), hidden])
    covered = [at for at, frame in enumerate(stored) if places[frame, -1] < reach]
    if not covered:
        return miss("audio_short", name, EXACT, "the stored states reach no stored window")
    windows = cut_windows(steps, places[[stored[at] for at in covered]] + before)
    return compare("audio_short", name, windows, prompts[covered], EXACT).noting(
        named_frames([stored[at] for at in covered])
    )


def check_resample(golden: GoldenSet) -> Iterator[Row]:
    """Stereo at another rate (22.05 kHz) to 16 kHz mono."""
    stage, arrays = "audio_resample", golden.load("audio_resample")
    audio = golden.open_audio(golden.folder / "stereo22k.wav")
    count = count_output_frames(audio.n_samples, golden.fps)
    yield compare(stage, "nsamples", audio.n_samples, arrays["nsamples"])
    yield compare(stage, "count", count, arrays["count"])
    yield compare(stage, "pcm16k", samples_of(audio), arrays["pcm16k"])
    windows, stored = (
        golden.windows_of(audio, golden.fps, range(count)),
        arrays["prompts_first"][None],
    )
    frames = frames_of(stored, windows)
    row = compare(stage, "prompts_first", windows[frames], stored, HIDDEN)
    yield row.noting(named_frames(frames))


def check_long(golden: GoldenSet) -> Iterator[Row]:
    """Windows on both sides of the seam at 30 s, and frame counts."""
    stage, arrays = "audio_long", golden.load("audio_long")
    audio = golden.open_audio(
        write_long_audio(golden.wav, int(arrays["nsamples"]), golden.scratch / "long.wav")
    )
    yield compare(stage, "nsamples", audio.n_samples, arrays["nsamples"])
    rates = {*numbers_in(arrays, r"idx_(\d+)"), *numbers_in(arrays, r"prompts_(\d+)")}
    if not rates:
        raise IncompleteSet("audio_long.npz has no idx_N and prompts_N")
    for fps in sorted(rates):
        n_steps = golden.windows_of(audio, Fraction(fps), arrays[f"idx_{fps}"].tolist())
        stored = arrays[f"prompts_{fps}"]
        yield compare_stored_as_half(stage, f"prompts_{fps}", n_steps, stored, HIDDEN.error)
    yield from _compare_counts(golden, audio.n_samples)


def _compare_counts(golden: GoldenSet, n_samples: int) -> Iterator[Row]:
    listed = golden.meta.get("long_counts_by_fps", {})
    counts = {fps: count for fps, count in listed.items() if isinstance(count, int)}
    if not counts:
        raise IncompleteSet("meta.json has no long_counts_by_fps")
    for fps, counted in counts.items():  # a string where the reference gives up
        # The reference counts with the rate cut to an integer (Q7).
        ours = count_output_frames(n_samples, Fraction(math.floor(float(fps))))
        yield compare("audio_long", f"count at {fps} fps", ours, counted)


def write_long_audio(wav: Path, n_samples: int, path: Path) -> Path:
    """Rebuild the long sound: the speech at 16 kHz, repeated, cut, written with 16 bits."""
    sound, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    mono = np.ascontiguousarray(sound.T).mean(axis=0)
    if rate != SAMPLE_RATE:
        length = librosa_length(len(mono), rate)
        resampled = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")[:length]
        # librosa cuts what soxr makes to this length, or fills it up with zeros.
        mono = np.pad(resampled, (0, length - len(resampled)))
    repeated = np.tile(mono, math.ceil(n_samples / len(mono)))[:n_samples]
    soundfile.write(path, repeated, SAMPLE_RATE, subtype="PCM_16")
    return path
