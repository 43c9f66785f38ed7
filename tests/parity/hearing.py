"""The stages from a sound file to the windows that steer the mouth."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import SpeechAudio
from musetalk_pipeline.audio import cut_windows, window_places
from musetalk_pipeline.networks.whisper import load_ear
from musetalk_pipeline.options import SpeechOptions
from musetalk_pipeline.plan import SAMPLE_RATE, Segment, count_output_frames

from .golden import GoldenSet, numbers_in, prompt_frames, samples_of
from .report import EXACT, Row, Tolerance, compare, compare_stored_as_half

MEL = Tolerance(1e-5)
HIDDEN = Tolerance(2e-5)
FPS = Fraction(25)
OPTIONS = SpeechOptions()


def check_short(golden: GoldenSet) -> list[Row]:
    """Mel, encoder states, windows: of the speech that the frames are generated from."""
    stage, arrays = "audio_short", golden.load("audio_short")
    audio, ear = golden.short_audio, load_ear(golden.models / "whisper")
    mel = ear.mel(samples_of(audio))
    hidden, prompts = arrays["hidden"][0], arrays["prompts"]
    states = ear.states(mel)
    count = count_output_frames(audio.n_samples, FPS)
    stored = prompt_frames(count)
    return [
        compare(stage, "nsamples", audio.n_samples, arrays["nsamples"]),
        compare(stage, "count", count, arrays["count"]),
        compare(stage, "mel", mel[None, :, : arrays["mel"].shape[2]], arrays["mel"], MEL),
        compare(
            stage, "mel_tail", mel[None, :, -arrays["mel_tail"].shape[2] :], arrays["mel_tail"], MEL
        ),
        compare(stage, "hidden", states[: len(hidden)], hidden, HIDDEN),
        _golden_windows(hidden, prompts, stored),
        compare(stage, "prompts (chain)", hear(golden, audio, FPS, stored), prompts, HIDDEN),
    ]


def _golden_windows(
    hidden: NDArray[np.float32], prompts: NDArray[np.float32], stored: list[int]
) -> Row:
    """Cut windows from the stored encoder states, as far as those reach."""
    places = window_places(FPS, 0, max(stored) + 1, OPTIONS)
    before = -int(places[0, 0])
    steps = np.concatenate([np.zeros((before, *hidden.shape[1:]), np.float32), hidden])
    covered = [at for at, frame in enumerate(stored) if places[frame, -1] < len(hidden)]
    windows = cut_windows(steps, places[[stored[at] for at in covered]] + before)
    return compare("audio_short", "prompts (of golden states)", windows, prompts[covered], EXACT)


def check_resample(golden: GoldenSet) -> list[Row]:
    """22.05 kHz stereo to 16 kHz mono."""
    stage, arrays = "audio_resample", golden.load("audio_resample")
    audio = golden.open_audio(golden.folder / "stereo22k.wav")
    return [
        compare(stage, "nsamples", audio.n_samples, arrays["nsamples"]),
        compare(stage, "count", count_output_frames(audio.n_samples, FPS), arrays["count"]),
        compare(stage, "pcm16k", samples_of(audio), arrays["pcm16k"], Tolerance(1e-4)),
        compare(
            stage,
            "prompts_first",
            hear(golden, audio, FPS, [5])[0],
            arrays["prompts_first"],
            HIDDEN,
        ),
    ]


def check_long(golden: GoldenSet) -> list[Row]:
    """Windows on both sides of the seam at 30 s, and frame counts."""
    stage, arrays = "audio_long", golden.load("audio_long")
    audio = _long_audio(golden, int(arrays["nsamples"]))
    rows = [compare(stage, "nsamples", audio.n_samples, arrays["nsamples"])]
    for fps in numbers_in(arrays, r"idx_(\d+)"):
        frames = arrays[f"idx_{fps}"].tolist()
        heard = hear(golden, audio, Fraction(fps), frames)
        stored = arrays[f"prompts_{fps}"]
        rows.append(compare_stored_as_half(stage, f"prompts_{fps}", heard, stored, HIDDEN.error))
    for fps, counted in golden.meta.get("long_counts_by_fps", {}).items():
        if isinstance(counted, int):  # a string where the reference gives up
            # The reference counts with the rate cut to an integer (Q7).
            ours = count_output_frames(audio.n_samples, Fraction(math.floor(float(fps))))
            rows.append(compare(stage, f"count at {fps} fps", ours, counted))
    return rows


def _long_audio(golden: GoldenSet, n_samples: int) -> SpeechAudio:
    """Rebuild the long sound: the speech at 16 kHz, repeated, cut, written with 16 bits."""
    sound, rate = soundfile.read(golden.wav, dtype="float32", always_2d=True)
    mono = soxr.resample(sound.mean(axis=1), rate, SAMPLE_RATE, quality="HQ")
    repeated = np.tile(mono, math.ceil(n_samples / len(mono)))[:n_samples]
    path = golden.scratch / "long.wav"
    soundfile.write(path, repeated, SAMPLE_RATE, subtype="PCM_16")
    return golden.open_audio(path)


def hear(
    golden: GoldenSet, audio: SpeechAudio, fps: Fraction, frames: list[int]
) -> NDArray[np.float32]:
    """Return the windows of single output frames, as the listener gives them."""
    first = Segment(0, 0, 0, 0, 0, 1)
    single = [replace(first, start=frame, end=frame + 1) for frame in frames]
    return np.concatenate(
        [golden.listener.listen(audio, fps, each, OPTIONS).features for each in single]
    )
