"""Where the project lies, and which configuration a command means."""

from __future__ import annotations

import os
from pathlib import Path

from lipsync.terminal import Terminal

PROJECT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = "serve_config.yaml"


def config_of(given: Path | None, terminal: Terminal) -> Path:
    """Return the configuration that is meant: the one that is given, else serve_config.yaml here,
    else the project's own. The folders in the project's own belong to the project, so the process
    goes there.
    """
    if given is not None:
        return given
    if not Path(DEFAULT_CONFIG).is_file() and Path.cwd() != PROJECT:
        terminal.say(f"There is no {DEFAULT_CONFIG} here. The project's own is used, in {PROJECT}.")
        os.chdir(PROJECT)
        return PROJECT / DEFAULT_CONFIG
    return Path(DEFAULT_CONFIG)
