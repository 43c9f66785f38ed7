"""Where a command prints: its result on standard output, and everything else on standard error.

With `--json` the result is one JSON object, errors included, and nothing else is on standard
output. Rows of a result are aligned; colours are left out where there is no terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

import typer

from serve_app.one_shot.stopping import Stopping


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why a command failed. `code` is stable and meant for programs."""

    code: str
    message: str
    exit_code: int
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal of one command. `stopping`: what a signal must not leave behind."""

    is_json: bool
    stopping: Stopping

    def say(self, text: str) -> None:
        """Print a line about what is being done."""
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def working(self, text: str, stream: TextIO | None = None) -> Iterator[None]:
        """Show that something takes a while, for the length of the block; only on a terminal."""
        from rich.console import Console

        with Console(file=stream or sys.stderr).status(text):
            yield

    def result(self, facts: Mapping[str, Any], rows: Iterable[tuple[str, str]]) -> None:
        """Print the result: `facts` as JSON, or `rows` of a name and a text."""
        if self.is_json:
            print(json.dumps(facts), flush=True)
            return
        pairs = list(rows)
        if not sys.stdout.isatty():  # a file or a pipe has no width: its lines are not folded
            width = max(len(name) for name, _ in pairs)
            print(*(f"{name:<{width}}  {text}" for name, text in pairs), sep="\n", flush=True)
            return
        from rich.console import Console
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in pairs:
            table.add_row(name, text)
        Console(highlight=False, markup=False, emoji=False).print(table)

    def complain(self, complaint: Complaint) -> None:
        """Print why the command failed."""
        if self.is_json:
            facts = {"status": "error", "code": complaint.code, "message": complaint.message}
            if complaint.hint is not None:
                facts["hint"] = complaint.hint
            print(json.dumps({**facts, "exit_code": complaint.exit_code}), flush=True)
            return
        is_coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        mark = "\033[1;31merror:\033[0m" if is_coloured else "error:"
        code = "" if complaint.code == "usage" else f" [{complaint.code}]"
        print(f"{mark} {complaint.message}{code}", file=sys.stderr)
        if complaint.hint is not None:
            print(f"hint:  {complaint.hint}", file=sys.stderr)

    def quiet_stdout(self) -> AbstractContextManager[Any]:
        """Send what a library prints to standard error, if standard output is for JSON."""
        return redirect_stdout(sys.stderr) if self.is_json else nullcontext()


def terminal_of(context: typer.Context) -> Terminal:
    """Return the terminal of the command that runs."""
    terminal = context.find_object(Terminal)
    assert terminal is not None, "`run` hands every command its terminal"
    return terminal
