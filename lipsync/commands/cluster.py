"""`lipsync cluster up|status|check|down|sweep FILE`: one Ray cluster of rented machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync.flags import Json
from lipsync.terminal import Complaint, Terminal, terminal_of

if TYPE_CHECKING:
    from rich.progress import Progress

    from cluster.ray_up.after_up import HeadReport
    from cluster.ray_up.operations import ClusterFile
    from cluster.rental.values import Instance

app = typer.Typer(
    help="Start, look at and end one Ray cluster of rented machines.", no_args_is_help=True
)

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="The cluster is described in this file.")
]
Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE…", help="The clusters are described in these files."),
]


@app.command()
def check(context: typer.Context, files: Files, json: Json = False) -> None:
    """Compare cluster files with Ray's schema and with the project's own rules.

    Nothing is rented, and no vendor is contacted. The exit code is 2 if a file has a fault.
    """
    from cluster.ray_up.cluster_file import ClusterFileInvalid, read_cluster_file
    from cluster.ray_up.cluster_file import check as faults_of
    from serve_app.one_shot.exit_codes import BAD_INPUT

    terminal = terminal_of(context)
    found: dict[str, list[str]] = {}
    for path in files:
        try:
            found[str(path)] = faults_of(read_cluster_file(path))
        except ClusterFileInvalid as invalid:
            found[str(path)] = list(invalid.faults)
    rows = [(path, "\n".join(faults) or "ok") for path, faults in found.items()]
    terminal.result({"files": found}, rows)
    if any(found.values()):
        raise typer.Exit(BAD_INPUT)


@app.command()
def up(context: typer.Context, files: Files, json: Json = False) -> None:
    """Rent the machines of a cluster, start Ray and the application, and see that they live.

    Of several files, the first whose head can be rented is used: name one for each vendor that will
    do. The command ends when the monitor on the head lives and the least number of workers have
    joined. Run again, it restarts Ray on the head and keeps the workers.
    """
    from cluster.ray_up import operations

    terminal = terminal_of(context)
    with _complaints(terminal):
        chosen = [operations.read(path) for path in files]
        for index, file in enumerate(chosen):
            try:
                with _steps(f"up {file.name} at {file.settings.vendor}") as show:
                    operations.up(file, show)
                break
            except operations.LaunchFailed as failed:
                if index + 1 == len(chosen) or operations.machines(file):
                    raise  # the last one, or its machines have to be returned first
                terminal.say(f"{file.path}: {failed} Next: {chosen[index + 1].path}.")
        with terminal.working("waiting for the workers"):
            report = operations.wait_until_joined(file, lambda _: None)
        _show(terminal, file, report, operations.machines(file))


@app.command()
def status(context: typer.Context, file: File, json: Json = False) -> None:
    """List the machines of a cluster, what Ray has of them, and launches that failed."""
    from cluster.ray_up import operations

    terminal = terminal_of(context)
    with _complaints(terminal):
        read = operations.read(file)
        with terminal.working("asking the vendor and the head"):
            machines = operations.machines(read)
            report = operations.report(read) if machines else None
        _show(terminal, read, report, machines)


@app.command()
def down(context: typer.Context, file: File, json: Json = False) -> None:
    """Return all machines of a cluster, and see that none is left."""
    from cluster.ray_up import operations

    terminal = terminal_of(context)
    with _complaints(terminal):
        read = operations.read(file)
        with _steps(f"down {read.name}") as show:
            operations.down(read, show)
        left = operations.machines(read)
        if left:
            raise operations.LaunchFailed("Machines are left.", [one.instance_id for one in left])
        terminal.result({"machines": []}, [("machines", "none")])


@app.command()
def sweep(context: typer.Context, file: File, json: Json = False) -> None:
    """Return the workers of a cluster whose head is gone.

    Machines that other programs have rented are never touched.
    """
    from cluster.ray_up import operations

    terminal = terminal_of(context)
    with _complaints(terminal):
        returned = [one.instance_id for one in operations.sweep(operations.read(file))]
        terminal.result({"returned": returned}, [("returned", ", ".join(returned) or "none")])


@contextmanager
def _complaints(terminal: Terminal) -> Iterator[None]:
    """Turn what can go wrong into a complaint and an exit code."""
    from cluster.ray_up.cluster_file import ClusterFileInvalid
    from cluster.ray_up.operations import LaunchFailed
    from cluster.rental.errors import RentalError
    from serve_app.one_shot.exit_codes import BAD_INPUT, OWN_FAULT

    try:
        yield
    except ClusterFileInvalid as invalid:
        terminal.complain(Complaint("cluster_file_invalid", str(invalid), BAD_INPUT))
        raise typer.Exit(BAD_INPUT) from None
    except LaunchFailed as failed:
        text = "\n".join((str(failed), *failed.lines))
        terminal.complain(Complaint("cluster_failed", text, OWN_FAULT))
        raise typer.Exit(OWN_FAULT) from None
    except RentalError as error:
        terminal.complain(Complaint(error.code, str(error), OWN_FAULT, error.hint))
        raise typer.Exit(OWN_FAULT) from None


@contextmanager
def _steps(what: str) -> Iterator[Any]:
    """Show the numbered steps of Ray's launcher as a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from cluster.ray_up.operations import STEPS

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=STEPS)
        yield lambda number, text: _advance(bar, task, f"{what}: {text}", number)


def _advance(bar: Progress, task: Any, text: str, number: int) -> None:
    bar.update(task, description=text, completed=number - 1)


def _show(
    terminal: Terminal,
    file: ClusterFile,
    report: HeadReport | None,
    machines: tuple[Instance, ...],
) -> None:
    """Print the machines, each with what Ray says about it."""
    joined = {node.instance_id: node.is_alive for node in report.nodes} if report else {}
    rows, facts = [], []
    for one in machines:
        assert one.identity is not None  # `machines` returns only such
        is_alive = joined.get(one.instance_id)
        state = "in the cluster" if is_alive else "not in the cluster"
        state = "lost by Ray" if is_alive is False else state
        price = 0.0 if one.usd_per_hour is None else one.usd_per_hour
        text = f"{one.identity.node_type}, {one.state}, {state}, ${price:.2f} an hour"
        rows.append((one.instance_id, text))
        facts.append(
            {"id": one.instance_id, "node_type": one.identity.node_type, "state": one.state,
             "usd_per_hour": price, "in_cluster": bool(is_alive)}
        )  # fmt: skip
    pending = dict(report.pending) if report else {}
    failures = list(report.failures) if report else []
    error = report.monitor_error if report else ""
    rows += [(f"starting: {name}", str(count)) for name, count in pending.items()]
    rows += [("failed", failure) for failure in failures]
    rows += [("monitor", error)] if error else []
    everything = {"cluster": file.name, "machines": facts, "pending": pending}
    everything |= {"failures": failures, "monitor_error": error}
    terminal.result(everything, rows or [("machines", "none")])
