"""`lipsync config check [CONFIG]`: the checks of a start, without the start."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from lipsync.commands.serve import Config
from lipsync.flags import Json
from lipsync.terminal import terminal_of

app = typer.Typer(help="Check the configuration of the application.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check the configuration of the application."""


@app.command()
def check(context: typer.Context, config: Config = None, json: Json = False) -> None:
    """Check everything that a start needs, without starting anything.

    The configuration, the environment and the machine are checked as `lipsync serve` does it.
    Every fault is printed with its line in the file. The exit code is 0 if the application can be
    started, and 2 if it cannot.
    """
    from lipsync.project import config_of

    terminal = terminal_of(context)
    path = config_of(config, terminal)
    from serve_app.one_shot.exit_codes import BAD_INPUT

    with terminal.working("checking"):
        faults = _faults(path)
    facts = {"config": str(path), "is_valid": not faults, "faults": list(faults)}
    for fault in () if terminal.is_json else faults:
        terminal.say(fault)
    verdict = f"{len(faults)} fault{'s' * (len(faults) > 1)}" if faults else "valid"
    terminal.result(facts, [(str(path), verdict)])
    if faults:
        raise typer.Exit(BAD_INPUT)


def _faults(path: Path) -> tuple[str, ...]:
    from serve_app.config.config_file import ConfigInvalid
    from serve_app.launcher.checks import check_start
    from serve_app.launcher.ray_cluster import environment_before_ray

    os.environ |= environment_before_ray(os.environ)
    try:
        check_start(path)
    except ConfigInvalid as invalid:
        return invalid.faults
    return ()
