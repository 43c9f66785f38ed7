"""What the commands of `lipsync fleet` share: errors, tables, and the fleet of the environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from lipsync.terminal import Complaint, Terminal
from serve_app.one_shot.exit_codes import BAD_INPUT, OWN_FAULT

if TYPE_CHECKING:
    from cluster.fleet.cells import Cells


@contextmanager
def fleet_of(terminal: Terminal, provider: str) -> Iterator[Cells]:
    """Open the fleet at a vendor, and turn what fails there into a complaint."""
    from cluster.fleet.provider import open_cells
    from cluster.fleet.settings import FleetSettings
    from cluster.rental.values import Vendor

    with complaints(terminal):
        cells = open_cells(Vendor(provider), FleetSettings())
        try:
            yield cells
        finally:
            cells.close()


@contextmanager
def complaints(terminal: Terminal) -> Iterator[None]:
    """Turn the errors of vendors, of the orchestrator and of settings into complaints."""
    from cluster.fleet.orchestrator import OrchestratorDown
    from cluster.rental.errors import RentalError

    try:
        yield
    except (RentalError, OrchestratorDown) as exc:
        terminal.complain(Complaint(exc.code, str(exc), OWN_FAULT, exc.hint))
        raise typer.Exit(OWN_FAULT) from None
    except ValueError as exc:
        terminal.complain(Complaint("bad_settings", str(exc), BAD_INPUT))
        raise typer.Exit(BAD_INPUT) from None


def show_table(
    terminal: Terminal,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    facts: Mapping[str, Any],
) -> None:
    """Print `facts` as JSON, or rows as a table; without a terminal as plain columns."""
    if terminal.is_json:
        print(json.dumps(facts), flush=True)
        return
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    if not sys.stdout.isatty():
        widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
        for line in lines:
            cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
            print("  ".join(cells).rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, header_style="bold")
    for line in lines[1:]:
        table.add_row(*line)
    Console(highlight=False, markup=False, emoji=False).print(table)
