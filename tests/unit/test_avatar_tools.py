"""The files and choices of this machine that an avatar depends on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.avatar_tools import describe_tools
from musetalk_pipeline.errors import ModelLoadFailed
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs
from serve_app.graph.builders import build_avatars, build_shelf

FILES = (
    "sd-vae/diffusion_pytorch_model.bin",
    "sd-vae/config.json",
    "face-parse-bisent/79999_iter.pth",
    "dwpose/dw-ll_ucoco_384.onnx",
    "s3fd/s3fd-619a316812.pth",
)
CHOICES: dict[str, Any] = {
    "version": "v15",
    "presence": "landmarks",
    "presence_interval": 12,
    "person_box": "frame",
    "seed": 5,
    "precisions": ["float16", "float32", "float16"],
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder; what is in the files does not matter here."""
    for name in FILES:
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "models"


def test_the_files_that_are_loaded_are_part_of_the_identity(models: Path) -> None:
    tools = describe_tools("musetalk", "onnx", models, **CHOICES)
    assert dict(tools.files) == {
        name: hashlib.sha256(name.encode()).hexdigest() for name in FILES if "s3fd" not in name
    }
    assert (tools.model_version, tools.seed) == ("v15", 5)
    assert tools.precisions == ("float16", "float32")
    (models / FILES[2]).write_text("another parser")
    assert describe_tools("musetalk", "onnx", models, **CHOICES) != tools


def test_s3fd_counts_only_if_it_decides(models: Path) -> None:
    tools = describe_tools("musetalk", "onnx", models, **CHOICES)
    by_s3fd = describe_tools("musetalk", "onnx", models, **{**CHOICES, "presence": "s3fd"})
    assert (tools.presence_interval, by_s3fd.presence_interval) == (None, 12)
    assert set(dict(by_s3fd.files)) - set(dict(tools.files)) == {"s3fd/s3fd-619a316812.pth"}


def test_an_engine_without_weights_ignores_what_concerns_them(models: Path) -> None:
    tools = describe_tools("warp", "mesh", models, **CHOICES)
    assert (tools.seed, tools.precisions) == (None, ())
    assert [name for name, _ in tools.files] == ["mediapipe"]
    other = describe_tools("warp", "mesh", models, **{**CHOICES, "version": "v1", "seed": None})
    assert replace(other, seed=tools.seed) == tools


@pytest.mark.parametrize("name", FILES[:4])
def test_a_missing_file_is_named_and_turns_the_cache_off(
    models: Path, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (models / name).unlink()
    with pytest.raises(ModelLoadFailed, match="cannot be read") as failed:
        describe_tools("musetalk", "onnx", models, **CHOICES)
    assert failed.value.details["file"] == name
    assert build_avatars(settings(tmp_path), read_environment({})) is None
    assert "avatars are not kept" in caplog.text


def test_a_budget_of_nothing_turns_the_cache_off(tmp_path: Path) -> None:
    args = settings(tmp_path, avatars={"max_gb": 0})
    assert build_avatars(args, read_environment({})) is None
    assert build_shelf(args, read_environment({})) is None
    assert not (tmp_path / "state" / "avatars").exists()


def settings(folder: Path, **more: Any) -> AppArgs:
    return AppArgs.model_validate(
        {
            "engine": "musetalk",
            "landmarks": "onnx",
            "models_dir": folder / "models",
            "pools": [{"name": "cpu"}],
            "work_dir": folder / "work",
            "result_dir": folder / "results",
            "state_dir": folder / "state",
            **more,
        }
    )
