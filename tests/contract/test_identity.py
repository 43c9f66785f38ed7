"""Who a worker is: the documented order, one identity a machine, the GPU's class."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import pytest

from serve_app.config.environment import read_environment
from serve_app.config.gpu_class import detect_gpu_class, gpu_class, read_gpu_class
from serve_app.fleet.identity import (
    buffer_worker_id,
    kept_id,
    new_worker_id,
    worker_id,
)

DOCUMENTED_ORDER = ["SALAD_MACHINE_ID", "VAST_CONTAINERLABEL", "OCTASPACE_NODE_ID", "WORKER_ID"]


@pytest.mark.parametrize(
    "names", [c for size in range(1, 5) for c in combinations(DOCUMENTED_ORDER, size)], ids="+".join
)
def test_the_first_variable_of_the_documented_order_wins(names: tuple[str, ...]) -> None:
    env = {name: f"id of {name}" for name in names}
    assert worker_id(read_environment(env), fallback="random") == f"id of {names[0]}"


@pytest.mark.parametrize("env", [{}, {"SALAD_MACHINE_ID": ""}, {"WORKER_ID": "  \n"}])
def test_empty_variables_count_as_unset(env: dict[str, str]) -> None:
    assert worker_id(read_environment(env), fallback="random") == "random"


def test_a_buffer_worker_is_named_by_its_own_variable() -> None:
    env = read_environment({"BUFFER_WORKER_ID": "shelf-1", "SALAD_MACHINE_ID": "m-1"})
    assert buffer_worker_id(env, host="box") == "shelf-1"
    assert worker_id(env, fallback="random") == "m-1"


@pytest.mark.parametrize("env", [{}, {"WORKER_ID": "w-1"}, {"BUFFER_WORKER_ID": " "}])
def test_a_buffer_worker_without_it_is_named_by_its_host(env: dict[str, str]) -> None:
    """Mend 1.17: as the predecessor named itself."""
    assert buffer_worker_id(read_environment(env), host="box") == "buffer-box"


def test_a_random_identity_is_kept(tmp_path: Path) -> None:
    assert kept_id(tmp_path) == kept_id(tmp_path)


def test_random_identities_differ() -> None:
    assert len({new_worker_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("NVIDIA GeForce RTX 5060 Ti, 16311\n", "RTX-5060Ti-16GB"),
        ("NVIDIA GeForce RTX 3090, 24576", "RTX-3090-24GB"),
        ("NVIDIA GeForce RTX 2070, 8192\nNVIDIA GeForce RTX 3090, 24576\n", "RTX-2070-8GB"),
        ("NVIDIA GeForce RTX 4070 SUPER, 12282", "RTX-4070SUPER-12GB"),
        ("NVIDIA GeForce RTX 3080 Ti, 12288", "RTX-3080Ti-12GB"),
        ("NVIDIA A100-SXM4-80GB, 81920", "A100-SXM4-80GB"),
        ("NVIDIA L40S, 46068", "L40S-45GB"),
        ("Tesla T4, 15360", "Tesla-T4-15GB"),
        ("NVIDIA GH200 480GB, [N/A]", "GH200-480GB"),
        ("NVIDIA Thor, [N/A]", "Thor"),
        ("", None),
        ("\n", None),
    ],
)
def test_gpu_names_become_classes(answer: str, name: str | None) -> None:
    assert read_gpu_class(answer) == name


@pytest.mark.parametrize(
    ("env", "detected", "name"),
    [
        ({"GPU_CLASS_NAME": "A", "GPU_CLASS": "B"}, "C", "A"),
        ({"GPU_CLASS": "B"}, "C", "B"),
        ({"GPU_CLASS_NAME": " ", "GPU_CLASS": ""}, "C", "C"),
        ({}, None, "cpu"),
    ],
)
def test_a_set_class_goes_before_the_detected_one(
    env: dict[str, str], detected: str | None, name: str
) -> None:
    assert gpu_class(read_environment(env), detected=detected) == name


def test_a_buffer_worker_asks_the_shorter_name_of_the_class_first() -> None:
    """Mend 1.17."""
    both = read_environment({"GPU_CLASS_NAME": "A", "GPU_CLASS": "B"})
    assert gpu_class(both, detected="C", is_buffer=True) == "B"
    one = read_environment({"GPU_CLASS_NAME": "A"})
    assert gpu_class(one, detected="C", is_buffer=True) == "A"


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ('echo "NVIDIA GeForce RTX 4090, 24564"', "RTX-4090-24GB"),
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", None),
        ("exit 0", None),
    ],
    ids=["gpu", "driver fault", "no gpu"],
)
def test_detection_runs_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, name: str | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert detect_gpu_class() == name


def test_no_nvidia_smi_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_gpu_class() is None
