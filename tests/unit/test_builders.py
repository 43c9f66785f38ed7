"""What `auto` means for the application, by the files that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.engines.warp.audio_encoder import WarpAudioEncoder
from musetalk_pipeline.weights.manifest import published
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs
from serve_app.graph.builders import (
    build_audio_encoder,
    build_detector,
    build_engine,
    resolve,
)


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


def test_what_a_pool_and_the_preprocessor_are_given_reaches_the_networks() -> None:
    made: dict[str, dict[str, Any]] = {}

    def make(name: str, _models: Path, **given: object) -> Any:
        made[name] = given

    pool = {"name": "gpu", "num_gpus": 0.7, "speedup": "cuda_graphs", "dtype": "float16"}
    args = AppArgs.model_validate(
        {
            "engine": "musetalk",
            "landmarks": "mmpose",
            "seed": 7,
            "pools": [pool],
            "preprocessor": {"num_gpus": 0.1},
        }
    )
    build_engine(args, args.pools[0], read_environment({"BATCH_SIZE": "12"}), make)
    build_detector(args, make)
    engine = made["musetalk"]
    assert engine["device"] == made["mmpose"]["device"] == "cuda:0"
    assert (engine["gpu_share"], engine["speedup"]) == (0.7, "cuda_graphs")
    assert (engine["precision"], engine["batch_size"], engine["seed"]) == ("float16", 12, 7)


def test_without_a_gpu_both_are_on_the_cpu() -> None:
    devices: list[object] = []

    def make(_name: str, _models: Path, **given: object) -> Any:
        devices.append(given["device"])

    args = AppArgs.model_validate(
        {"engine": "musetalk", "landmarks": "mmpose", "pools": [{"name": "c"}]}
    )
    build_engine(args, args.pools[0], read_environment({}), make)
    build_detector(args, make)
    assert devices == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("variables", "jobs"),
    [
        ({}, 4),
        ({"WORKER_MAX_CONCURRENT_JOBS": "6"}, 6),
        ({"WORKER_MODE": "buffer", "BUFFER_CAPACITY": "8"}, 8),
    ],
)
def test_the_audio_encoder_keeps_sound_for_all_concurrent_jobs(
    variables: dict[str, str], jobs: int
) -> None:
    """Mend 3.4, also if the environment says how many they are."""
    args = AppArgs.model_validate(
        {"engine": "warp", "pools": [{"name": "c"}], "queue": {"max_concurrent_jobs": 4}}
    )
    encoder = build_audio_encoder(args, read_environment(variables))
    assert isinstance(encoder, WarpAudioEncoder)
    assert encoder.max_clips == jobs + 1
