"""`lipsync watch`, `ls`, `cancel`, `retry` and `download`: the jobs of a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from lipsync.flags import Force, Json
from lipsync.fleet_output import show_table
from lipsync.remote import JobId, Server, client_of, rows_of, show_end
from lipsync.terminal import terminal_of

LONGEST_NAME = 100
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


def watch(context: typer.Context, id: JobId, server: Server = None, json: Json = False) -> None:
    """Show how far a job is until it ends, and print how it ended.

    Ctrl-C ends the command, but not the job. The exit code is 0 if the job has succeeded, 2 if one
    of its inputs is at fault, and 1 if it has failed otherwise or was cancelled.
    """
    from lipsync.job_progress import follow

    terminal = terminal_of(context)
    with client_of(terminal, server) as client:
        job = follow(terminal, client, id)
    show_end(terminal, job)


def ls(
    context: typer.Context,
    status: Annotated[
        Status | None, typer.Option("--status", help="List only jobs with this status.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, help="List so many jobs at most.")
    ] = 20,
    server: Server = None,
    json: Json = False,
) -> None:
    """List the jobs of a server, the newest first."""
    from lipsync.job_progress import table_of

    terminal = terminal_of(context)
    with client_of(terminal, server) as client:
        jobs = list(client.jobs(status, limit))
    columns = ("id", "status", "progress", "created (UTC)", "error")
    show_table(terminal, columns, table_of(jobs), {"jobs": [dict(job.raw) for job in jobs]})


def cancel(context: typer.Context, id: JobId, server: Server = None, json: Json = False) -> None:
    """End a job that waits or runs. One that is being stored is finished all the same."""
    terminal = terminal_of(context)
    with client_of(terminal, server) as client:
        client.cancel(id)
    terminal.result({"id": id, "status": "cancelling"}, [("job", id), ("status", "cancelling")])


def retry(context: typer.Context, id: JobId, server: Server = None, json: Json = False) -> None:
    """Queue a job again that has failed or was cancelled."""
    terminal = terminal_of(context)
    with client_of(terminal, server) as client:
        job = client.retry(id)
    terminal.result(job.raw, rows_of(job).items())


def download(
    context: typer.Context,
    id: JobId,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write the result to this file. Default: ID.mp4 in the working folder.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    server: Server = None,
    json: Json = False,
) -> None:
    """Fetch the result of a job. A download that broke off is continued."""
    from lipsync.job_progress import Transfers

    terminal = terminal_of(context)
    name = re.sub(r"[^\w.-]", "_", id)[:LONGEST_NAME].lstrip(".-") or "job"
    target = out or Path(f"{name}.mp4")
    with client_of(terminal, server) as client, Transfers("download") as shown:
        client.download(id, target, shown.show, may_overwrite=force)
    terminal.result({"id": id, "output": str(target)}, [("job", id), ("output", str(target))])
