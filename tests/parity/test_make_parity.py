"""`make parity` shows the table where there is a golden set, and says so where there is none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_golden_set_it_says_that_it_is_skipped(tmp_path: Path) -> None:
    alone = tmp_path / "project" / "scripts"
    alone.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "parity.sh", alone)
    done = subprocess.run(
        [alone / "parity.sh"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "parity: skipped, ../shared/golden is not there\n"


def test_a_miss_fails_it(tmp_path: Path) -> None:
    shared, scripts = tmp_path / "shared", tmp_path / "project" / "scripts"
    for folder in (shared / "golden", shared / "tools", scripts):
        folder.mkdir(parents=True)
    (shared / "tools" / "make_weights.py").touch()
    shutil.copy(ROOT / "scripts" / "parity.sh", scripts)
    # In the place of Python: makes no weights, and checks nothing but fails.
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "$@"\n[[ $2 != tests.parity ]]\n')
    python.chmod(0o755)
    environment = {"PYTHON": str(python), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [scripts / "parity.sh"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1
    assert "-m tests.parity --golden ../shared/golden" in done.stdout


def test_ci_prints_the_table() -> None:
    assert "\nmake parity\n" in (ROOT / ".ci" / "run").read_text()
