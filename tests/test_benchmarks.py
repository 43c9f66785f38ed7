"""The benchmarks start as documented: by their file's name, from anywhere, nothing installed."""

from __future__ import annotations

import json
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

pytestmark = pytest.mark.slow  # each start loads all libraries


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


def networks(out: Path, *arguments: str) -> list[dict[str, object]]:
    """Run benchmarks/networks.py in a process without Ray; return its rows."""
    code = (
        "import sys; sys.path[0] = sys.argv.pop(1); import networks; networks.main();"
        "assert 'ray' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(FOLDER), *arguments, "--out", str(out)]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, object]] = json.loads(out.read_text())["timings"]
    return rows


def test_networks_are_timed_in_the_variants_that_change_something(tmp_path: Path) -> None:
    short = ("--device", "cpu", "--seconds", "0", "--batch", "1", "--only", "parser")
    variants = ("--variant", "eager", "no_sdpa", "cuda_graphs")
    [row] = networks(tmp_path / "a" / "rows.json", *short, *variants)
    assert row["variant"] == "eager"
    assert row["frames_per_s"] == pytest.approx(1000 / row["wall_ms"])  # type: ignore[operator]


def test_a_row_that_takes_too_long_is_a_failed_one_and_the_rest_goes_on(tmp_path: Path) -> None:
    short = ("--device", "cpu", "--only", "parser", "--limit-s", "0.001")
    rows = networks(tmp_path / "rows.json", *short, "--variant", "eager", "channels_last")
    assert [row["variant"] for row in rows] == ["eager", "channels_last"]
    assert {row["failed"] for row in rows} == {"TimeoutError: took longer than 0.001 s"}
