"""Sets of other sizes, counts, rates and sounds are checked like the one that is at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from musetalk_pipeline.media.speech_audio import open_audio
from musetalk_pipeline.options import MediaLimits

from .__main__ import main
from .audio_checks import write_long_audio
from .golden import frames_of
from .other_set import Inputs, make_set
from .test_parity import GOLDEN

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="its frames and speech lie beside the repository, in ../shared"
)


def inputs(folder: Path, models: Path, count: int, n_samples: int) -> Inputs:
    """Return frames of 301x223, the chin at the lower edge, and the middle of the speech."""
    paths = sorted((GOLDEN / "astro").glob("*.png"))[3 : 3 + count]
    points = np.load(GOLDEN / "astro_landmarks.npz")["landmarks"][3 : 3 + count]
    left, top, bottom = 60, 20, int(points[:, :, 1].max()) + 6
    frames = [
        cv2.resize(cv2.imread(str(path))[top:bottom, left:], (301, 223)).astype(np.uint8)
        for path in paths
    ]
    scale = np.array([301 / (640 - left), 223 / (bottom - top)])
    sound, rate = soundfile.read(GOLDEN / "sp.wav", dtype="float32")
    wav = folder / "other.wav"
    soundfile.write(wav, sound[3000 : 3000 + n_samples], rate, subtype="PCM_16")
    landmarks = ((points - [left, top]) * scale).astype(np.float32)
    return Inputs(frames, landmarks, wav, models)


def run(golden: Path, made: Inputs, *more: str) -> int:
    """Return the exit code of the harness."""
    return main(
        [
            *("--golden", str(golden), "--models", str(made.models)),
            *("--frames", str(golden / "frames"), "--landmarks", str(golden / "landmarks.npz")),
            *("--wav", str(made.wav), *more),
        ]
    )


@needs_golden
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_set_of_another_size_count_and_rate_is_met(
    seeded_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = inputs(tmp_path, seeded_weights, count=5, n_samples=11027)
    made = Inputs(plain.frames, plain.landmarks, plain.wav, plain.models, fps=24, kept=(0, 2, 4))
    make_set(made, tmp_path / "set")
    code = run(tmp_path / "set", made)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "at 24 fps" in printed  # found by the number of frames
    assert "frames 0 2 4" in printed  # and which crops are kept by their pixels
    assert printed.count("v1 chain") > 3


@needs_golden
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_frame_and_one_version_are_met_and_the_other_version_is_missed(
    seeded_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = inputs(tmp_path, seeded_weights, count=1, n_samples=5513)
    made = Inputs(plain.frames, plain.landmarks, plain.wav, plain.models, versions=("v15",))
    make_set(made, tmp_path / "set")
    code = run(tmp_path / "set", made, "--versions", "v15")
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "v1 not asked for: nothing of it is checked" in printed
    assert run(tmp_path / "set", made, "--only", "v1_crop") == 1
    assert "v1_crop.npz is not in the set" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "set" / "frames")
    assert run(tmp_path / "set", made, "--only", "v15 chain") == 1
    assert "0 frames (*.png), but landmarks of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rate", "n_samples"), [(22_050, 11_027), (11_025, 5001), (44_100, 30_011), (16_000, 9000)]
)
def test_the_long_sound_repeats_what_the_pipeline_reads(
    tmp_path: Path, rate: int, n_samples: int
) -> None:
    # soxr gives 8001 samples for 11027 at 22.05 kHz, librosa 8002: every tile after the first
    # would begin a sample early.
    noise = np.random.default_rng(5).uniform(-0.5, 0.5, n_samples)
    wav = tmp_path / "speech.wav"
    soundfile.write(wav, noise, rate, subtype="PCM_16")
    samples = np.fromfile(open_audio(wav, tmp_path, MediaLimits()).pcm_path, "<f4")
    long, long_rate = soundfile.read(write_long_audio(wav, 30_000, tmp_path / "long.wav"))
    assert long_rate == 16_000
    expected = np.resize(samples, 30_000)
    np.testing.assert_allclose(long, expected, atol=1.01 / 2**15)


def test_stored_arrays_are_found_among_all_frames() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3)).astype(np.uint8)
    stored = frames[[0, 7, 3]].copy()
    stored[1, 0, 0, 0] ^= 255  # one wrong value does not make it another frame
    assert frames_of(stored, frames) == [0, 7, 3]
