"""What `auto` means for the application, by the files that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from musetalk_pipeline.weights import published
from serve_app.selection import resolve
from serve_app.settings import AppArgs, read_environment


def chosen(models: Path, **variables: str) -> tuple[str, str]:
    """Return the engine and the landmarks that `auto` stands for."""
    args = AppArgs.model_validate({"pools": [{"name": "cpu"}], "models_dir": str(models)})
    resolved = resolve(args, read_environment(variables))
    return resolved.engine, resolved.landmarks


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with all that the engine loads, empty, and no landmark network."""
    for file in published("v15"):
        if not file.path.startswith("dwpose/"):
            (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.path).touch()
    return tmp_path


def test_the_engine_is_musetalk_where_all_files_are(models: Path) -> None:
    assert chosen(models)[0] == "musetalk"
    (models / "sd-vae/config.json").unlink()
    assert chosen(models) == ("warp", "mesh")


def test_a_unet_of_ones_own_does_not_replace_the_other_files(models: Path) -> None:
    own = models / "own.pth"
    own.touch()
    (models / "musetalkV15/unet.pth").unlink()
    assert chosen(models)[0] == "warp"
    assert chosen(models, MUSETALK_UNET_MODEL_PATH=str(own))[0] == "musetalk"
    (models / "whisper/pytorch_model.bin").rename(models / "whisper/pytorch_model.bin.part")
    assert chosen(models, MUSETALK_UNET_MODEL_PATH=str(own))[0] == "warp"


def test_landmarks_are_onnx_where_the_file_of_that_detector_is(models: Path) -> None:
    (models / "dwpose").mkdir()
    (models / "dwpose/yolox_l.onnx").touch()  # published beside it, and of no use without
    assert chosen(models) == ("musetalk", "mesh")
    (models / "dwpose/dw-ll_ucoco_384.onnx").touch()
    assert chosen(models) == ("musetalk", "onnx")
