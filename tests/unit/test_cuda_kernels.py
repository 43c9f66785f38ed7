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
    return struct.pack("<IHHQ", cuda_kernels.CONTAINER_MAGIC, 1, 16, len(inside)) + inside


def library(path: Path, *containers: bytes, section: bytes = b".nv_fatbin") -> Path:
    """Write an ELF file with the containers in one section, with a gap between them."""
    names = b"\0.text\0" + section + b"\0"
    body = (b"\0" * 8).join(containers)
    names_at, body_at = 64, 64 + len(names)
    table_at = body_at + len(body)

    def header(name: int, offset: int, length: int) -> bytes:
        return struct.pack("<IIQQQQ", name, 1, 0, 0, offset, length).ljust(64, b"\0")

    table = header(0, 0, 0) + header(0, names_at, len(names)) + header(7, body_at, len(body))
    head = bytearray(b"\x7fELF\x02\x01".ljust(64, b"\0"))
    struct.pack_into("<Q", head, 0x28, table_at)
    struct.pack_into("<HHH", head, 0x3A, 64, 3, 1)
    padding = b"\0" * cuda_kernels.LARGE_BYTES
    path.write_bytes(bytes(head) + names + body + table + padding)
    return path


def test_kernels_are_read_from_every_container(tmp_path: Path) -> None:
    first = container((MACHINE_CODE, 75), (MACHINE_CODE, 86), (PTX, 86))
    path = library(tmp_path / "a.so", first, container((MACHINE_CODE, 75), (MACHINE_CODE, 120)))
    found = kernels_of(path)
    assert found is not None
    assert found.machine_code == {(7, 5): 2, (8, 6): 1, (12, 0): 1}
    assert found.ptx == {(8, 6): 1}


def test_what_is_no_library_with_kernels_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"no library" * 20)
    assert kernels_of(tmp_path / "a.so") is None
    assert kernels_of(library(tmp_path / "b.so", container(), section=b".other")) is None


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
