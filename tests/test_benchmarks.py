"""The benchmarks start as documented: by their file's name, from anywhere, nothing installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
COMMANDS = sorted(path for path in FOLDER.glob("*.py") if "__main__" in path.read_text())
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
LIMIT_S = 120


def test_there_are_benchmarks() -> None:
    assert {path.stem for path in COMMANDS} >= {"networks", "nonmodel", "memory", "warp"}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_benchmark_starts_from_anywhere(path: Path, tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, str(named), "--help"],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for folder, named in ((ROOT, path.relative_to(ROOT)), (tmp_path, path))
    ]
    for process in started:
        said, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, said
        assert f"usage: {path.name}" in said
