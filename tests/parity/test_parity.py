"""The reference's golden set is reproduced, and the harness notices when it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .__main__ import main

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN = SHARED / "golden"
HEAD = "stage  "  # the table's first line begins so

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden set lies beside the repository, in ../shared"
)

Printed = pytest.CaptureFixture[str]


def run(golden: Path, models: Path, *more: str, **others: Path) -> int:
    """Return the exit code of the harness. `others`: frames, landmarks, where they are not ours."""
    return main(
        [
            *("--golden", str(golden), "--models", str(models)),
            *("--frames", str(others.get("frames", GOLDEN / "astro"))),
            *("--landmarks", str(others.get("landmarks", GOLDEN / "astro_landmarks.npz"))),
            *("--wav", str(GOLDEN / "sp.wav"), *more),
        ]
    )


@pytest.mark.timeout(900)  # both versions with networks, on a machine that may be busy
@pytest.mark.slow  # `make parity` is the same
def test_every_stage_and_the_chain_equal_the_reference(
    seeded_weights: Path, capsys: Printed
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
    seeded_weights: Path, tmp_path: Path, capsys: Printed, name: str, key: str, change: float
) -> None:
    golden = copy_of_golden(tmp_path)

    def with_change(arrays: dict[str, Any]) -> None:
        flat = arrays[key].flat
        flat[0] = 255 - flat[0] if change == 255 else flat[0] + change

    rewrite(golden, name, with_change)
    assert run(golden, seeded_weights, "--only", name) == 1
    assert "1 missed" in capsys.readouterr().out


def test_a_file_that_the_set_lacks_is_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
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


# One array of each file. The checks themselves have to miss it: meta.json does not list it.
DELETED = {
    "audio_short": "mel_tail",
    "audio_resample": "pcm16k",
    "audio_long": "idx_29",
    "coords": "bbox_shift_0",
    "v15_cheeks": "cheek_kernel",
    "v15_crop": "vae_in_masked",
    "v15_latents": "seed",
    "v15_unet": "pe_added0",
    "v15_decoded": "mean_std",
    "v15_parse": "neck",
    "v15_blended": "raw",
    "v15_realtime": "mask7",
    "v1_crop": "crop256",
    "v1_latents": "mode",
    "v1_unet": "pe_added0",
    "v1_decoded": "faces",
    "v1_parse": "logits64",
    "v1_blended": "idx",
    "v1_realtime": "box7",
}


@pytest.fixture(scope="module")
def table_of_deleted(seeded_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a set that lacks one array of each file, the chains left out."""
    golden = copy_of_golden(tmp_path_factory.mktemp("deleted"))
    for name, key in DELETED.items():
        rewrite(golden, name, lambda arrays, key=key: arrays.pop(key))  # type: ignore[misc]
        relist(golden, name, lambda listed, key=key: listed.pop(key))  # type: ignore[misc]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: lines.extend(str(text).splitlines()))
        for part in ("audio", "coords", "v15_", "v1_"):
            assert run(golden, seeded_weights, "--only", part) == 1
    return lines


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DELETED)
def test_an_array_that_a_file_lacks_is_a_miss(table_of_deleted: list[str], name: str) -> None:
    missed = [line for line in table_of_deleted if line.startswith(name) and "MISS" in line]
    assert any(f"{name}.npz lacks {DELETED[name]}" in line for line in missed), missed


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("coords", ["bbox_shift_5"]),
        ("v15_cheeks", ["jaw_60_120"]),
        ("v1_realtime", ["mask7", "box7"]),
        ("audio_long", ["idx_29", "prompts_29"]),
    ],
)
def test_what_meta_lists_and_a_file_lacks_is_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed, name: str, keys: list[str]
) -> None:
    golden = copy_of_golden(tmp_path)
    rewrite(golden, name, lambda arrays: [arrays.pop(key) for key in keys])
    assert run(golden, seeded_weights, "--only", name) == 1
    printed = capsys.readouterr().out
    for key in keys:
        assert f"{name}.npz lacks {key}, which meta.json lists" in printed


@pytest.mark.parametrize(
    ("name", "prefixes", "reason"),
    [
        ("v15_cheeks", ["jaw_"], "has no jaw_LEFT_RIGHT"),
        ("audio_long", ["idx_", "prompts_"], "has no idx_N"),
        ("v15_realtime", ["mask", "box"], "lacks mask0"),
    ],
)
def test_a_whole_family_that_is_gone_is_a_miss(
    seeded_weights: Path,
    tmp_path: Path,
    capsys: Printed,
    name: str,
    prefixes: list[str],
    reason: str,
) -> None:
    golden = copy_of_golden(tmp_path)

    def without(entries: dict[str, Any]) -> None:
        for key in [key for key in entries if key.startswith(tuple(prefixes))]:
            del entries[key]

    rewrite(golden, name, without)
    relist(golden, name, without)
    assert run(golden, seeded_weights, "--only", name) == 1
    assert reason in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jaw", "raw", "neck"])
def test_a_picture_fewer_is_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed, mode: str
) -> None:
    golden = copy_of_golden(tmp_path)
    rewrite(golden, "v15_blended", lambda arrays: arrays.update({mode: arrays[mode][:-1]}))
    assert run(golden, seeded_weights, "--only", "v15_blended") == 1
    assert re_line(capsys, "v15_blended", mode, "in meta.json")


def test_without_meta_the_arrays_and_the_counts_are_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
) -> None:
    golden = copy_of_golden(tmp_path)
    (golden / "meta.json").unlink()
    assert run(golden, seeded_weights, "--only", "meta") == 1
    assert "meta.json is not in the set" in capsys.readouterr().out
    assert run(golden, seeded_weights, "--only", "audio_long") == 1
    assert "meta.json has no long_counts_by_fps" in capsys.readouterr().out


def test_a_damaged_meta_is_a_miss(seeded_weights: Path, tmp_path: Path, capsys: Printed) -> None:
    golden = copy_of_golden(tmp_path)
    (golden / "meta.json").write_text('{"stages": ')
    assert run(golden, seeded_weights, "--only", "coords") == 1
    printed = capsys.readouterr().out
    assert "JSONDecodeError" in printed
    assert "bbox_shift_5" in printed  # what can be compared still is


@pytest.mark.parametrize("damage", ["absent", "garbage", "short"])
def test_weights_that_cannot_be_loaded_are_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed, damage: str
) -> None:
    models = tmp_path / "models"
    shutil.copytree(seeded_weights, models)
    weights = models / "musetalk" / "pytorch_model.bin"
    content = weights.read_bytes()
    weights.unlink()
    if damage != "absent":
        weights.write_bytes(b"no weights" if damage == "garbage" else content[: len(content) // 2])
    assert run(GOLDEN, models, "--only", "v1_unet") == 1
    assert re_line(capsys, "v1_unet", "-", "ModelLoadFailed")


def test_an_array_file_that_cannot_be_read_is_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
) -> None:
    golden = copy_of_golden(tmp_path)
    (golden / "v15_cheeks.npz").write_bytes(b"PK\x03\x04 nothing")
    assert run(golden, seeded_weights, "--only", "v15_cheeks") == 1
    assert re_line(capsys, "v15_cheeks", "-", "Bad")


def test_a_frame_that_cannot_be_read_is_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
) -> None:
    frames = copy_of_frames(tmp_path, 14)
    (frames / "00000003.png").write_bytes(b"no picture")
    assert run(GOLDEN, seeded_weights, "--only", "v15_crop", frames=frames) == 1
    assert re_line(capsys, "v15_crop", "-", "00000003.png cannot be read")


def test_frames_and_landmarks_of_other_numbers_are_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
) -> None:
    frames = copy_of_frames(tmp_path, 1)
    assert run(GOLDEN, seeded_weights, "--only", "v1_crop", frames=frames) == 1
    assert re_line(capsys, "v1_crop", "-", "1 frames (*.png), but landmarks of 14")


def test_one_source_frame_too_few_is_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
) -> None:
    frames, landmarks = copy_of_frames(tmp_path, 1), tmp_path / "one.npz"
    np.savez(landmarks, np.load(GOLDEN / "astro_landmarks.npz")["landmarks"][:1])
    more = ("--only", "v15_crop")
    assert run(GOLDEN, seeded_weights, *more, frames=frames, landmarks=landmarks) == 1
    assert re_line(capsys, "v15_crop", "crop256", "frames 0 0 0")


def test_landmarks_without_a_box_are_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
) -> None:
    points = np.load(GOLDEN / "astro_landmarks.npz")["landmarks"]
    points[4] = 100.0
    np.savez(tmp_path / "flat.npz", landmarks=points)
    more = ("--only", "v15_crop")
    assert run(GOLDEN, seeded_weights, *more, landmarks=tmp_path / "flat.npz") == 1
    assert re_line(capsys, "v15_crop", "-", "the landmarks of frame 4 give no box")


def test_boxes_of_no_shift_are_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
) -> None:
    golden = copy_of_golden(tmp_path)
    wrong = np.array([1, 2, 3, 4])
    rewrite(golden, "v1_parse", lambda arrays: arrays.update(crop_box=wrong))
    rewrite(golden, "v1_realtime", lambda arrays: arrays.update(box0=wrong, box7=wrong))
    assert run(golden, seeded_weights, "--only", "v1_crop") == 1
    assert re_line(capsys, "v1_crop", "-", "no bbox_shift from -64 to 64")


@pytest.mark.slow
def test_a_frame_past_the_end_is_a_miss(
    seeded_weights: Path, tmp_path: Path, capsys: Printed
) -> None:
    golden = copy_of_golden(tmp_path)
    beyond = np.array([0, 1, 9, 14, 20, 99])
    rewrite(golden, "v15_decoded", lambda arrays: arrays.update(idx=beyond))
    assert run(golden, seeded_weights, "--only", "v15_decoded") == 1
    assert re_line(capsys, "v15_decoded", "-", "IndexError: index 99")


def re_line(capsys: Printed, stage: str, array: str, reason: str) -> bool:
    """Whether the table is there, and in it a miss of that array with that reason."""
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(HEAD)
    return any(
        line.split()[:2] == [stage, array] and "MISS" in line and reason in line for line in lines
    )


def copy_of_golden(folder: Path) -> Path:
    """Return a copy whose files may be changed."""
    golden = folder / "golden"
    shutil.copytree(
        GOLDEN, golden, ignore=shutil.ignore_patterns("astro"), copy_function=shutil.copyfile
    )
    golden.chmod(0o755)
    return golden


def copy_of_frames(folder: Path, count: int) -> Path:
    """Return a folder of the first source frames, which may be changed."""
    frames = folder / "frames"
    frames.mkdir()
    for path in sorted((GOLDEN / "astro").glob("*.png"))[:count]:
        shutil.copyfile(path, frames / path.name)
    return frames


def rewrite(golden: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the arrays of a file in place."""
    with np.load(golden / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    change(arrays)
    np.savez(golden / f"{name}.npz", **arrays)


def relist(golden: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what meta.json lists of a file."""
    meta = json.loads((golden / "meta.json").read_text())
    change(meta["stages"][name])
    (golden / "meta.json").write_text(json.dumps(meta))
