"""`lipsync doctor [CONFIG]`: a table of what the project needs, and what helps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lipsync.commands.serve import Config
from lipsync.flags import Json
from lipsync.terminal import terminal_of

if TYPE_CHECKING:
    from lipsync.findings import Finding

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[bold red]missing[/]"}


def doctor(context: typer.Context, config: Config = None, json: Json = False) -> None:
    """Examine this machine, and say what is missing and what helps.

    Python, Ray, ffmpeg, the GPU with its driver and the build of torch, the configuration, the
    weights, the ports, the disks and the shared memory are examined. The exit code is 1 if
    something is missing that `lipsync serve` needs. A warning does not change it.
    """
    from lipsync.project import config_of
    from serve_app.one_shot.exit_codes import OWN_FAULT

    terminal = terminal_of(context)
    path = config_of(config, terminal)
    with terminal.working("examining this machine"):
        found = list(_examine(path))
    is_ready = all(one.state != "missing" for one in found)
    if terminal.is_json:
        terminal.result({"is_ready": is_ready, "checks": [asdict(one) for one in found]}, ())
    else:
        _print_table(found, is_ready)
    if not is_ready:
        raise typer.Exit(OWN_FAULT)


def _examine(config: Path) -> Iterator[Finding]:
    """Yield what is found. Packages that are missing end nothing: that is what is reported."""
    from lipsync import installation
    from lipsync.findings import Finding

    yield installation.python()
    yield installation.ray()
    yield from installation.media_tools()
    yield from installation.gpu(os.environ)
    try:
        from lipsync.readiness import application

        yield from application(config, os.environ)
    except ImportError as exc:
        yield Finding("packages", "missing", str(exc), installation.SET_UP)


def _print_table(found: Sequence[Finding], is_ready: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, is_wide in (("what", False), ("state", False), ("found, and what helps", True)):
        table.add_column(title, no_wrap=not is_wide, overflow="fold", header_style="dim")
    for one in found:
        text = escape(one.found)
        if one.state != "ok" and one.remedy is not None:
            text += f"\n[dim]→[/] {escape(one.remedy)}"
        table.add_row(one.name, MARKS[one.state], text)
    console = Console(highlight=False, emoji=False)
    console.print(table)
    console.print()
    if is_ready:
        console.print("[green]`lipsync serve` can start.[/]")
    else:
        console.print("[red]`lipsync serve` cannot start until what is missing is there.[/]")
