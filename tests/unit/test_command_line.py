"""The command line's arguments: what they become, and which are refused before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from musetalk_pipeline.__main__ import _load, _options, _parser, main
from musetalk_pipeline.engines import decide_engine
from musetalk_pipeline.faces import best_landmarks
from musetalk_pipeline.loading import find_models
from musetalk_pipeline.options import (
    EncodeOptions,
    FaceOptions,
    FrameOptions,
    JobOptions,
    MaskOptions,
)
from musetalk_pipeline.weights.manifest import published
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs
from serve_app.graph.builders import resolve


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resolution", "640x360"], {"frame": FrameOptions(resolution="640x360")}),
        (["--aspect-ratio", "9:16"], {"frame": FrameOptions(aspect_ratio="9:16")}),
        (["--audio-bitrate-kbps", "96"], {"encode": EncodeOptions(audio_bitrate_kbps=96)}),
        (["--version", "v1"], {"face": FaceOptions("v1"), "mask": MaskOptions("raw")}),
    ],
)
def test_a_flag_becomes_its_option(words: list[str], expected: dict[str, object]) -> None:
    args = _parser().parse_args(["v.mp4", "a.wav", *words])
    assert _options(args) == replace(JobOptions(), **expected)


@pytest.mark.parametrize(("flag", "most"), [("--batch-size", 256), ("--encoder-threads", 64)])
@pytest.mark.parametrize("value", ["-1", "0", "257", "4.5", "many"])
def test_a_count_out_of_bounds_is_refused(
    flag: str, most: int, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["v.mp4", "a.wav", "-o", "o.mp4", flag, value])
    assert stop.value.code == 2
    assert f"argument {flag}: 1 to {most} are accepted, not '{value}'" in capsys.readouterr().err


def test_encoder_threads_are_those_asked_for_or_the_cores() -> None:
    words = ["v.mp4", "a.wav", "--engine", "warp"]
    cores = len(os.sched_getaffinity(0))
    assert _load(_parser().parse_args(words)).encoder_threads == min(cores, 64)
    asked = _parser().parse_args([*words, "--encoder-threads", "1"])
    assert _load(asked).encoder_threads == 1


# --- Mend 2.4: the weights are found by themselves ------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


def put_weights(models: Path) -> None:
    """Make a folder with all that the engine and `onnx` are chosen by; the files are empty."""
    names = [file.path for file in published("v15")] + ["dwpose/dw-ll_ucoco_384.onnx"]
    for name in names:
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).touch()


def test_the_models_are_those_named_else_here_else_in_the_project(tmp_path: Path) -> None:
    here, project = tmp_path / "here", tmp_path / "project"
    here.mkdir()
    assert find_models(tmp_path / "named", here, project) == tmp_path / "named"
    assert find_models(None, here, project) == project / "models"
    (here / "models").mkdir()
    assert find_models(None, here, project) == here / "models"


def test_auto_takes_the_weights_in_models_and_says_why(tmp_path: Path) -> None:
    put_weights(tmp_path / "models")
    for name in ("v.mp4", "a.wav"):
        (tmp_path / name).touch()
    done = subprocess.run(
        [sys.executable, "-m", "musetalk_pipeline", "v.mp4", "a.wav", "-o", "o.mp4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    models = tmp_path / "models"
    assert done.stdout == f"engine    musetalk, because all of its files are in {models}\n"
    assert done.returncode == 1  # for they are empty


def test_why_an_engine_was_chosen_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = _parser().parse_args(["v.mp4", "a.wav", "--models", str(tmp_path)])
    _load(args)
    assert capsys.readouterr().out == (
        f"engine    warp, because none of MuseTalk's files is in {tmp_path}\n"
    )
    put_weights(tmp_path)
    (tmp_path / "sd-vae/config.json").unlink()
    _load(args)
    assert capsys.readouterr().out == (
        f"engine    warp, because sd-vae/config.json is missing in {tmp_path}\n"
    )


def test_command_line_and_application_mean_the_same_by_auto(tmp_path: Path) -> None:
    put_weights(tmp_path)
    args = AppArgs.model_validate({"pools": [{"name": "cpu"}], "models_dir": str(tmp_path)})
    served = resolve(args, read_environment({}))
    engine = decide_engine("auto", tmp_path).engine
    assert (served.engine, served.landmarks) == (engine, best_landmarks(engine, tmp_path))
    assert engine == "musetalk"
