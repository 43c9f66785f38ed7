"""What the commands that talk to a server share: which server, and what becomes of its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync.terminal import Complaint, Terminal
from serve_app.one_shot.exit_codes import BAD_INPUT, OWN_FAULT

if TYPE_CHECKING:
    from lipsync_client import Job, LipsyncClient, LipsyncError

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="The address of the server. Default: LIPSYNC_SERVER, or http://127.0.0.1:8000.",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The id of the job, as `ls` shows it.")]
# Answers that a later call may not get: the same command can succeed then.
PASSING = frozenset({408, 425, 429})
PATIENCE_S = 5.0  # somebody waits for an answer; a job that is followed gets longer


@contextmanager
def client_of(terminal: Terminal, server: str | None) -> Iterator[LipsyncClient]:
    """Open a client of the server. What it raises becomes a complaint, and the exit code.

    The key is LIPSYNC_API_KEY or, without it, INGRESS_API_KEY.
    """
    from lipsync_client import LipsyncClient, LipsyncError, Retries

    try:
        client = LipsyncClient(server, retries=Retries(for_s=PATIENCE_S))
    except ValueError as error:
        terminal.complain(Complaint("usage", str(error), BAD_INPUT))
        raise typer.Exit(BAD_INPUT) from None
    try:
        with client:
            yield client
    except LipsyncError as error:
        code = exit_code_of(error)
        terminal.complain(Complaint(error.code, error.message, code, error.hint))
        raise typer.Exit(code) from None
    except FileExistsError as error:
        message, hint = f"{error.filename} exists.", "Overwrite it with --force, or use -o."
        terminal.complain(Complaint("file_exists", message, BAD_INPUT, hint))
        raise typer.Exit(BAD_INPUT) from None


def exit_code_of(error: LipsyncError) -> int:
    """Return whose fault an error is: that of the request, or of the network and the server."""
    status = getattr(error, "status", None)
    is_refused = status is not None and 400 <= status < 500 and status not in PASSING
    return BAD_INPUT if is_refused and not error.retryable else OWN_FAULT


def exit_code_of_job(job: Job) -> int:
    """Return the exit code that says how a job ended."""
    if job.status == "succeeded":
        return 0
    is_input = job.failure is not None and job.failure.error_type == "media_error"
    return BAD_INPUT if is_input else OWN_FAULT


def show_end(terminal: Terminal, job: Job, **more: Any) -> None:
    """Print how a job ended, and end the command if it has no result.

    Raises:
        typer.Exit: it has failed, or was cancelled.
    """
    code = exit_code_of_job(job)
    if terminal.is_json or code == 0:
        terminal.result({**job.raw, **more}, (rows_of(job) | more).items())
    else:
        failure = job.failure
        message = job.error or f"The job was {job.status}."
        hint = None if failure is None else failure.hint
        kind = job.status if failure is None else failure.code
        terminal.complain(Complaint(kind, message, code, hint))
    if code:
        raise typer.Exit(code)


def rows_of(job: Job) -> dict[str, str]:
    """Return what people are shown of a job."""
    rows = {"job": job.id, "status": job.status}
    if job.output_url is not None:
        rows["link"] = job.output_url
    metrics = job.metrics or {}
    if (seconds := metrics.get("total_time")) is not None:
        rows["seconds"] = f"{seconds:.1f}"
    if (usd := (metrics.get("receipt") or {}).get("usd")) is not None:
        rows["dollars"] = f"{usd:.4f}"
    for number, warning in enumerate(job.warnings, 1):
        rows["warning" if number == 1 else f"warning {number}"] = warning
    return rows
