"""`lipsync serve [CONFIG]`: starts the application and stays with it until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync.terminal import terminal_of

Config = Annotated[
    Path | None,
    typer.Argument(
        metavar="CONFIG",
        help="The configuration is this file. Default: serve_config.yaml here, else in the "
        "project.",
        show_default=False,
    ),
]


def serve(context: typer.Context, config: Config = None) -> None:
    """Start the application and keep serving.

    The configuration, the environment and the machine are checked first. Ctrl-C or SIGTERM lets
    the jobs that run end, and then stops; a second one stops at once. The exit code is 0 after
    such a stop, 2 if the application cannot be started, and 1 if it is lost while it runs.
    """
    from lipsync.project import config_of

    path = config_of(config, terminal_of(context))
    from serve_app import launch

    launch.leave(launch.main([str(path)]))
