"""Kernels in the libraries of a wheel, read from files that are laid out like the compiler's."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import cuda_kernels  # noqa: E402
from cuda_kernels import MACHINE_CODE, PTX, Kernels, kernels_of  # noqa: E402


def container(*entries: tuple[int, int]) -> bytes:
    """Return a container of entries, each of a kind and an architecture such as 86."""
    inside = b""
    for kind, architecture in entries:
        payload = b"\x90" * 24
        head = struct.pack("<HHIQ", kind, 1, 64, len(payload)).ljust(28, b"\0")
        inside += (head + struct.pack("<I", architecture)).ljust(64, b"\0") + payload
    return cuda_kernels.HEADER.pack(cuda_kernels.MAGIC, 1, 16, len(inside)) + inside


def library(path: Path, *containers: bytes, magic: bytes = b"\x7fELF") -> Path:
    """Write a library with the containers in it, and something like one between them."""
    between = cuda_kernels.MAGIC + b"\xff" * 40
    padding = b"\0" * cuda_kernels.LARGE_BYTES
    path.write_bytes(magic.ljust(64, b"\0") + between.join(containers) + between + padding)
    return path


def test_kernels_are_read_from_every_container(tmp_path: Path) -> None:
    first = container((MACHINE_CODE, 75), (MACHINE_CODE, 86), (PTX, 86))
    path = library(tmp_path / "a.so", first, container((MACHINE_CODE, 75), (MACHINE_CODE, 120)))
    found = kernels_of(path)
    assert found is not None
    assert found.machine_code == {(7, 5): 2, (8, 6): 1, (12, 0): 1}
    assert found.ptx == {(8, 6): 1}


def test_what_is_no_library_with_kernels_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"short")
    assert kernels_of(tmp_path / "a.so") is None
    assert kernels_of(library(tmp_path / "b.so")) is None
    assert kernels_of(library(tmp_path / "c.so", container((PTX, 75)), magic=b"text")) is None


@pytest.mark.parametrize(
    ("card", "runs"),
    [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), False), ((12, 1), True)],
)
def test_a_card_runs_code_of_its_major_version_and_later_ones_run_ptx(
    card: tuple[int, int], runs: bool
) -> None:
    kernels = Kernels(machine_code={(8, 0): 1}, ptx={(12, 0): 1})
    assert kernels.can_run_on(card) is runs


def test_a_wheel_that_lacks_kernels_for_a_card_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = library(tmp_path / "libtorch_cuda.so", container((MACHINE_CODE, 80)))
    wheel = tmp_path / "torch.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(built, "torch/lib/libtorch_cuda.so")
        archive.writestr("torch/readme.so.txt", "no library")
    assert cuda_kernels.main([str(wheel), "--need", "8.6"]) == 0
    assert cuda_kernels.main([str(wheel), "--need", "8.6", "12.0"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == {
        "library": "torch/lib/libtorch_cuda.so", "sm": ["8.0"], "ptx": [], "lacks": ["12.0"],
    }  # fmt: skip
