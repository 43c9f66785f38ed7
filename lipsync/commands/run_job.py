"""`lipsync run-job`: one job that the environment describes, for containers."""

from __future__ import annotations

from typing import Annotated

import typer

from lipsync.terminal import terminal_of


def run_job(
    context: typer.Context,
    variables: Annotated[
        bool,
        typer.Option("--variables", metavar="", help="List the variables that are read, and exit."),
    ] = False,
) -> None:
    """Do the one job that the environment describes, then exit.

    The job is described by VIDEO_URL, AUDIO_URL, and OUTPUT_URL or OUTPUT_PATH. The result is
    printed as one JSON object. It is meant for providers that run a container for each job.
    """
    terminal = terminal_of(context)
    if variables:
        from serve_app.one_shot.variables import VARIABLES

        terminal.result(VARIABLES, VARIABLES.items())
        return
    from serve_app import run_job as job

    raise typer.Exit(job.main([], terminal.stopping))
