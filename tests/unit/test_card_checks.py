"""GPUs against builds of torch, with a program in place of nvidia-smi."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from serve_app import launch
from serve_app.config import card_checks
from serve_app.config.card_checks import (
    BUILDS,
    Card,
    card_check,
    card_faults,
    cards_in_words,
    installed_build,
    read_cards,
    shm_fault,
)
from serve_app.launcher import checks

CU126, CU13 = BUILDS
TURING = Card("NVIDIA T4", (7, 5), "535.104.05")
HOPPER = Card("NVIDIA H200", (9, 0), "580.159.04")
BLACKWELL = Card("NVIDIA GeForce RTX 5090", (12, 0), "570.86")
ROOT = Path(__file__).resolve().parents[2]


def put_nvidia_smi(folder: Path, *lines: str, status: int = 0) -> None:
    """Write a program that answers as nvidia-smi does."""
    text = "".join(f"echo '{line}'\n" for line in lines)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{text}exit {status}\n")
    program.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_cards_are_read_as_nvidia_smi_prints_them(programs: Path) -> None:
    put_nvidia_smi(programs, "NVIDIA T4, 7.5, 535.104.05", "Old card, [N/A], 390.1", "")
    assert read_cards() == [TURING]


@pytest.mark.parametrize("status", [9, 255])
def test_a_driver_that_does_not_answer_is_no_card(programs: Path, status: int) -> None:
    put_nvidia_smi(programs, "Failed to initialize NVML", status=status)
    assert read_cards() == []


@pytest.mark.parametrize(
    ("card", "build"), [(TURING, CU126), (HOPPER, CU126), (HOPPER, CU13)], ids=str
)
def test_a_card_that_fits_is_no_fault(card: Card, build: object) -> None:
    assert list(card_faults([card], build)) == []  # type: ignore[arg-type]


def test_a_card_without_kernels_is_told_which_build_has_them() -> None:
    [fault] = card_faults([BLACKWELL, BLACKWELL], CU126)
    assert fault == (
        "NVIDIA GeForce RTX 5090 (compute capability 12.0) is not in this build for compute "
        "capabilities 5.0 to 9.0 (cu126): use the build cu13, which needs driver 580 or newer"
    )


def test_a_driver_that_is_too_old_is_told_with_the_build_that_it_can_run() -> None:
    [fault] = card_faults([TURING], CU13)
    assert "has the driver 535.104.05, and this build (cu13) needs 580 or newer" in fault
    assert fault.endswith("or use the build cu126, which needs driver 525 or newer")
    [fault] = card_faults([BLACKWELL], CU13)
    assert fault.endswith("or rent a machine with a newer driver")


def test_a_build_for_cpus_is_not_for_a_machine_with_a_card() -> None:
    [fault] = card_faults([HOPPER], None)
    assert "torch is installed without CUDA, and this machine has NVIDIA H200" in fault
    assert list(card_faults([], None)) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("NVIDIA H200, 9.0, 580.159.04", "ok"),
        ("NVIDIA GeForce RTX 5090, 12.0, 570.86", "NVIDIA GeForce RTX 5090 (compute capability"),
        ("", "ok, but nvidia-smi does not answer"),
    ],
)
def test_the_preflight_says_whether_the_card_fits(
    programs: Path, monkeypatch: pytest.MonkeyPatch, line: str, found: str
) -> None:
    put_nvidia_smi(programs, line)
    monkeypatch.setattr(card_checks, "installed_build", lambda: CU13)
    assert card_check().startswith(found)
    assert (card_check() == "ok") == (found == "ok")


def test_the_log_names_what_decides_which_build_a_card_needs() -> None:
    text = "NVIDIA T4 (compute capability 7.5) with driver 535.104.05"
    assert cards_in_words([TURING]) == text


def test_the_build_is_read_from_the_installed_package() -> None:
    import torch

    build = installed_build()
    assert (build is None) == (torch.version.cuda is None)


def test_a_card_that_cannot_run_the_build_ends_the_start_with_a_status_of_its_own(
    programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that whoever rents the machine can tell it from a mistake in the configuration."""
    put_nvidia_smi(programs, "NVIDIA GeForce RTX 5090, 12.0, 570.86")
    monkeypatch.setattr(checks, "has_gpu", lambda environ: True)
    monkeypatch.setattr(checks, "installed_build", lambda: CU126)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    document = yaml.safe_load((ROOT / "serve_config.gpu.yaml").read_text())
    arguments = document["applications"][0]["args"]
    arguments |= {"engine": "warp", "landmarks": "mesh"}
    config = programs / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    assert launch.main([str(config)]) == 3
    assert "use the build cu13" in capsys.readouterr().err


def test_small_shared_memory_is_told_with_the_option_that_enlarges_it(tmp_path: Path) -> None:
    missing = shm_fault(tmp_path / "shm")
    assert missing is not None and "does not exist" in missing
    assert shm_fault(Path("/proc")) is not None  # a file system without any room
    assert shm_fault(tmp_path) is None
