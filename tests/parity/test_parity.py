"""The reference's golden set is reproduced, and the harness notices when it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from .__main__ import main

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN = SHARED / "golden"

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden set lies beside the repository, in ../shared"
)


def run(golden: Path, models: Path, *more: str) -> int:
    """Return the exit code of the harness."""
    return main(
        [
            *("--golden", str(golden), "--models", str(models)),
            *("--frames", str(GOLDEN / "astro")),
            *("--landmarks", str(GOLDEN / "astro_landmarks.npz")),
            *("--wav", str(GOLDEN / "sp.wav"), *more),
        ]
    )


@pytest.mark.timeout(900)  # both versions with networks, on a machine that may be busy
def test_every_stage_and_the_chain_equal_the_reference(
    seeded_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(GOLDEN, seeded_weights)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "0 missed" in printed


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("v15_cheeks", "jaw_20_20", 255),
        ("coords", "bbox_shift_5", 1),
        ("v15_realtime", "box7", 1),
        ("audio_resample", "pcm16k", 1e-3),
    ],
)
def test_one_changed_value_is_a_miss(
    seeded_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    key: str,
    change: float,
) -> None:
    golden = copy_of_golden(tmp_path)
    arrays = dict(np.load(golden / f"{name}.npz"))
    changed = arrays[key]
    changed.flat[0] = 255 - changed.flat[0] if change == 255 else changed.flat[0] + change
    np.savez_compressed(golden / f"{name}.npz", **arrays)
    assert run(golden, seeded_weights, "--only", name) == 1
    assert "1 missed" in capsys.readouterr().out


def test_a_file_that_the_set_lacks_is_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = copy_of_golden(tmp_path)
    (golden / "coords.npz").unlink()
    assert run(golden, seeded_weights, "--only", "coords") == 1
    assert "coords.npz is not in the set" in capsys.readouterr().out


def test_other_weights_are_a_miss(seeded_weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "models"
    shutil.copytree(seeded_weights, other)
    # v1's UNet in the place of v1.5's: the same keys and shapes, other numbers.
    v1 = seeded_weights / "musetalk" / "pytorch_model.bin"
    shutil.copyfile(v1, other / "musetalkV15" / "unet.pth")
    assert run(GOLDEN, other, "--only", "v15_unet") == 1


def copy_of_golden(folder: Path) -> Path:
    """Return a copy whose files may be changed."""
    golden = folder / "golden"
    shutil.copytree(
        GOLDEN, golden, ignore=shutil.ignore_patterns("astro"), copy_function=shutil.copyfile
    )
    golden.chmod(0o755)
    return golden
