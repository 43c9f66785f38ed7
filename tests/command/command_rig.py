"""How the command line is started as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 240
# What the environment of the tests may say, and the command would act on.
SILENCED = ("ALLOWED_SOURCE_HOSTS", "HF_ENDPOINT", "RAY_ADDRESS", "WORKER_PORT", "COLUMNS")

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a command: the project is found from any folder."""
    kept = {name: value for name, value in os.environ.items() if name not in SILENCED}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lipsync", *map(str, arguments)]
