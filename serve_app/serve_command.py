"""The command `serve` of this project's environment; scripts/setup.sh puts it in front of Ray's.

`serve run FILE` of a configuration of this application goes through the launcher, which checks it
first. Everything else is Ray's own command line, unchanged.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from serve_app import launch
from serve_app.launcher.checks import IMPORT_PATH

ADDRESS_OPTIONS = ("--address", "-a")


def main() -> int:
    """Run the command line; its exit status."""
    arguments = sys.argv[1:]
    ours = run_of_ours(arguments)
    if ours is None:
        from ray.serve.scripts import cli

        return int(cli() or 0)
    file, address = ours
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    launch.leave(launch.main([file]))


def run_of_ours(arguments: list[str]) -> tuple[str, str | None] | None:
    """Return file and address of `serve run [--address A] FILE`; None for whatever is Ray's.

    A YAML file that is missing or cannot be read is ours: the launcher says so in a sentence.
    """
    if arguments[:1] != ["run"]:
        return None
    address, rest = None, arguments[1:]
    while rest and rest[0] in ADDRESS_OPTIONS and len(rest) > 1:
        address, rest = rest[1], rest[2:]
    if len(rest) != 1 or Path(rest[0]).suffix not in (".yaml", ".yml"):
        return None
    try:
        is_ours = IMPORT_PATH in Path(rest[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        is_ours = True
    return (rest[0], address) if is_ours else None
