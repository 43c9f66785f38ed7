"""`lipsync fleet …`: machines of the worker image at a vendor, which poll the orchestrator."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync.flags import Json
from lipsync.terminal import Terminal, terminal_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cluster.fleet.bench import Outcome
    from cluster.fleet.cells import Cell, Cells

app = typer.Typer(
    help="Rent and return machines of the worker image, which poll the orchestrator.",
    no_args_is_help=True,
)


class Provider(StrEnum):
    """The vendors (cluster/rental/values.py), without loading their clients."""

    SALAD = "salad"
    RUNPOD = "runpod"
    VAST = "vast"
    TENSORDOCK = "tensordock"
    OCTASPACE = "octaspace"


At = Annotated[Provider, typer.Option("--provider", help="The machines are at this vendor.")]
Class = Annotated[
    str, typer.Option("--gpu", metavar="CLASS", help="The GPU class, such as RTX-3090-24GB.")
]
Grace = Annotated[
    float,
    typer.Option(
        help="Seconds that cells have for their jobs before they are ended anyway.", min=0
    ),
]
GRACE_S = 1800.0


@app.command()
def up(
    context: typer.Context,
    provider: At,
    gpu: Class,
    count: Annotated[int, typer.Option(help="So many machines are rented.", min=1)] = 1,
    json: Json = False,
) -> None:
    """Rent machines in addition to those that are there.

    The image, the orchestrator and the keys are read from the environment (docs/cluster.md).
    """
    from lipsync.fleet_output import fleet_of

    terminal = terminal_of(context)
    with fleet_of(terminal, provider) as cells:
        _rent(terminal, cells, gpu, count)
        _show(terminal, cells.list())


@app.command()
def status(context: typer.Context, provider: At, json: Json = False) -> None:
    """Show the machines of the fleet, and the jobs that they hold."""
    from lipsync.fleet_output import fleet_of

    terminal = terminal_of(context)
    with fleet_of(terminal, provider) as cells:
        _show(terminal, cells.in_detail(cells.list()), cells.jobs())


@app.command()
def scale(
    context: typer.Context,
    provider: At,
    gpu: Class,
    count: Annotated[int, typer.Option(help="So many machines there shall be.", min=0)],
    grace_s: Grace = GRACE_S,
    json: Json = False,
) -> None:
    """Have so many machines of a class: rent the missing ones, or drain and return the others."""
    from cluster.fleet.ending import choose, end_cells
    from lipsync.fleet_output import fleet_of

    terminal = terminal_of(context)
    with fleet_of(terminal, provider) as cells:
        kind = cells.find_class(gpu)
        having = [one for one in cells.list() if one.gpu_class == kind.name and one.is_active]
        if count > len(having):
            _rent(terminal, cells, gpu, count - len(having))
        else:
            surplus = choose(having, cells.jobs(), len(having) - count)
            end_cells(cells, surplus, grace_s=grace_s, say=terminal.say)
        _show(terminal, cells.list())


@app.command()
def drain(
    context: typer.Context,
    provider: At,
    workers: Annotated[list[str], typer.Argument(metavar="MACHINE...", help="Their names.")],
    grace_s: Grace = GRACE_S,
    json: Json = False,
) -> None:
    """Let machines finish their jobs, and return them."""
    from cluster.fleet.ending import end_cells
    from lipsync.fleet_output import fleet_of

    terminal = terminal_of(context)
    with fleet_of(terminal, provider) as cells:
        chosen = [one for one in cells.list() if one.worker_id in workers]
        unknown = set(workers) - {one.worker_id for one in chosen}
        if unknown:
            raise ValueError(f"There are no such machines: {', '.join(sorted(unknown))}.")
        end_cells(cells, chosen, grace_s=grace_s, say=terminal.say)
        _show(terminal, cells.list())


@app.command()
def down(
    context: typer.Context,
    provider: At,
    now: Annotated[
        bool, typer.Option("--now", metavar="", help="Jobs that run go back to the queue.")
    ] = False,
    grace_s: Grace = GRACE_S,
    json: Json = False,
) -> None:
    """Drain and return all machines of the fleet at a vendor."""
    from cluster.fleet.ending import end_cells
    from lipsync.fleet_output import fleet_of

    terminal = terminal_of(context)
    with fleet_of(terminal, provider) as cells:
        end_cells(cells, cells.list(), grace_s=0.0 if now else grace_s, say=terminal.say)
        _show(terminal, cells.list())


@app.command()
def sweep(
    context: typer.Context,
    provider: At,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Destroy what is listed.")] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Machines of these kinds: cell, bench, worker, head.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the machines that cost money and serve nobody; with `--yes`, destroy them.

    Without `--kind` these are cells and measurements. The workers of a Ray cluster are in the
    ledger of its head, so sweep them only when the cluster is down.
    """
    from cluster.rental.identity import Kind
    from cluster.rental.rentals import FLEET_KINDS
    from lipsync.fleet_output import fleet_of, show_table

    terminal = terminal_of(context)
    with fleet_of(terminal, provider) as cells:
        kinds = frozenset(Kind(word) for word in kind) if kind else FLEET_KINDS
        look = cells.rentals.sweep if yes else cells.rentals.orphans
        found = look(cells.cluster, kinds)
        rows = [(one.instance.name or "", one.instance.instance_id, one.reason) for one in found]
        facts = {"destroyed": yes, "orphans": [dict(zip(("name", "id", "reason"), row, strict=True))
                                               for row in rows]}  # fmt: skip
        show_table(terminal, ("machine", "id", "reason"), rows, facts)


@app.command()
def logs(
    context: typer.Context,
    provider: At,
    worker: Annotated[str, typer.Argument(metavar="MACHINE", help="The name of the machine.")],
    lines: Annotated[int, typer.Option(help="So many lines, from the end.", min=1)] = 200,
) -> None:
    """Print what a machine's container has printed."""
    from lipsync.fleet_output import fleet_of

    terminal = terminal_of(context)
    with fleet_of(terminal, provider) as cells:
        for one in cells.rentals.list(cells.cluster):
            if one.name == worker:
                print(cells.rentals.backend.logs(one.instance_id, lines))
                return
        raise ValueError(f"There is no machine {worker} at {provider}.")


@app.command()
def prices(
    context: typer.Context,
    provider: Annotated[
        list[Provider], typer.Option("--provider", help="The prices of these vendors are asked.")
    ],
    report: Annotated[
        Path, typer.Option(help="The report is written here, in Markdown.", dir_okay=False)
    ] = Path("prices.md"),
    json: Json = False,
) -> None:
    """Ask vendors for their prices, and write a report of dollars per finished minute."""
    from cluster.catalogue.table import load_catalogue, read_findings, write_findings
    from cluster.fleet import prices as asking
    from cluster.fleet.settings import FleetSettings
    from lipsync.fleet_output import fleet_of, show_table

    terminal, settings, today = terminal_of(context), FleetSettings(), _today()
    found = read_findings(settings.findings)
    for one in provider:
        with terminal.working(f"asking {one}"), fleet_of(terminal, one) as cells:
            new = asking.ask_prices(
                cells.rentals.backend,
                load_catalogue(),
                today,
                interruptible=settings.interruptible,
            )
            found = asking.add_prices(found, new.items())
    write_findings(settings.findings, found)
    catalogue = load_catalogue(settings.findings)
    report.write_text(asking.report(catalogue, today))
    rows = [
        (
            row.gpu_class.name,
            row.price.vendor,
            row.price.tier,
            f"{row.price.usd_per_hour:.3f}",
            row.price.date,
            f"{row.usd_per_minute:.5f}" if row.usd_per_minute is not None else "",
        )
        for row in asking.table(catalogue)
    ]
    columns = ("class", "provider", "tier", "$/h", "of", "$/finished minute")
    facts = {
        "report": str(report),
        "prices": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    show_table(terminal, columns, rows, facts)


@app.command()
def bench(
    context: typer.Context,
    provider: At,
    gpu: Annotated[
        list[str], typer.Option("--gpu", metavar="CLASS", help="One machine of each is rented.")
    ],
    within_s: Annotated[
        float, typer.Option(help="Seconds for each machine, the pull of the image included.", min=1)
    ] = 2400.0,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Machines post their results here instead of having their logs read.",
            show_default=False,
        ),
    ] = None,
    report_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="How machines reach --listen.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Rent one machine of each class, run the image's benchmark there, and return it."""
    from contextlib import nullcontext

    from cluster.fleet import bench as measuring
    from cluster.fleet.listener import Listener
    from lipsync.fleet_output import fleet_of

    terminal = terminal_of(context)
    terminal.stopping.last_words = "machines that were rented are being returned"
    host, _, port = (listen or "").rpartition(":")
    with (
        fleet_of(terminal, provider) as cells,
        Listener(host, int(port), report_url) if listen else nullcontext() as listener,
    ):
        outcomes = measuring.measure(
            cells,
            [cells.find_class(name) for name in gpu],
            within_s=within_s,
            say=terminal.say,
            listener=listener,
        )
        cells.keep_speeds(
            {
                one.gpu_class.name: speed
                for one in outcomes
                if (speed := one.speed(_today(), provider)) is not None
            }
        )
    _show_outcomes(terminal, outcomes)


def _rent(terminal: Terminal, cells: Cells, gpu: str, count: int) -> None:
    kind = cells.find_class(gpu)
    for number in range(1, count + 1):
        with terminal.working(f"renting {number} of {count}"):
            made = cells.rent(kind)
        terminal.say(f"rented {made.name} ({number} of {count})")


def _show(terminal: Terminal, cells: Sequence[Cell], jobs: dict[str, int] | None = None) -> None:
    from lipsync.fleet_output import show_table

    columns = ("machine", "id", "class", "state", "jobs", "$/h", "detail")
    rows = [
        (
            cell.worker_id,
            cell.instance.instance_id,
            cell.gpu_class,
            "draining" if cell.is_draining else str(cell.instance.state),
            str((jobs or {}).get(cell.worker_id, "")),
            f"{cell.instance.usd_per_hour or 0:.3f}",
            cell.instance.detail,
        )
        for cell in cells
    ]
    total = sum(cell.instance.usd_per_hour or 0.0 for cell in cells)
    facts = {
        "machines": [dict(zip(columns, row, strict=True)) for row in rows],
        "usd_per_hour": round(total, 4),
    }
    show_table(terminal, columns, rows, facts)
    terminal.say(f"{len(rows)} machines, ${total:.3f} per hour")


def _outcome(one: Outcome) -> tuple[str, ...]:
    line = one.line
    return (
        one.gpu_class.name,
        f"{line.frames_per_s:.1f}" if line else "",
        f"{line.peak_vram_mib:.0f}" if line and line.peak_vram_mib else "",
        f"{one.usd_per_hour:.3f}" if one.usd_per_hour else "",
        f"{one.usd_per_minute:.5f}" if one.usd_per_minute else "",
        f"{one.paid_usd:.4f}",
        one.reason,
    )


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _show_outcomes(terminal: Terminal, outcomes: Sequence[Outcome]) -> None:
    from cluster.fleet import bench as measuring
    from lipsync.fleet_output import show_table

    columns = ("class", "frames/s", "VRAM MiB", "$/h", "$/finished minute", "paid $", "")
    rows = [_outcome(one) for one in outcomes]
    best, quickest = measuring.cheapest(outcomes), measuring.fastest(outcomes)
    facts: dict[str, Any] = {
        "measurements": [dict(zip((*columns[:-1], "reason"), row, strict=True)) for row in rows],
        "cheapest": best.gpu_class.name if best else None,
        "fastest": quickest.gpu_class.name if quickest else None,
    }
    show_table(terminal, columns, rows, facts)
    if best is not None and quickest is not None:
        terminal.say(
            f"The cheapest per finished minute is {best.gpu_class.name}; the fastest is "
            f"{quickest.gpu_class.name}."
        )
