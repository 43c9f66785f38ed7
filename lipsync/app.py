"""The command line: its commands, and what becomes of an error.

Light to import: a command imports what it needs when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from typer._click.exceptions import (  # typer's own copy of click, which has no public name
    ClickException,
    NoArgsIsHelpError,
    NoSuchOption,
    UsageError,
)

from lipsync import __version__
from lipsync.commands import (
    bench,
    cluster,
    config,
    doctor,
    drain,
    fleet,
    jobs,
    make,
    preview,
    run_job,
    serve,
    submit,
    weights,
)
from lipsync.exit_codes import EPILOG
from lipsync.terminal import Complaint, Terminal
from musetalk_pipeline.errors import PipelineError
from serve_app.one_shot.exit_codes import BAD_INPUT, DONE, OWN_FAULT, exit_code
from serve_app.one_shot.stopping import Stopping

PROGRAM = "lipsync"
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(
    name=PROGRAM,
    help="Make the face in a video speak the words of an audio file.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
app.command("make")(make.make)
app.command("preview")(preview.preview)
app.command("submit")(submit.submit)
app.command("watch")(jobs.watch)
app.command("ls")(jobs.ls)
app.command("download")(jobs.download)
app.command("cancel")(jobs.cancel)
app.command("retry")(jobs.retry)
app.command("estimate")(submit.estimate)
app.command("upload")(submit.upload)
app.command("serve")(serve.serve)
app.command("drain")(drain.drain)
app.command("run-job")(run_job.run_job)
app.add_typer(weights.app, name="weights")
app.add_typer(config.app, name="config")
app.add_typer(cluster.app, name="cluster")
app.add_typer(fleet.app, name="fleet")
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            metavar="",
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Make the face in a video speak the words of an audio file."""


def run(arguments: Sequence[str], stopping: Stopping) -> int:
    """Run one command; return its exit code."""
    terminal = Terminal("--json" in arguments, stopping)
    try:
        code = app(list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=terminal)
    except NoArgsIsHelpError as exc:
        exc.show()
        return BAD_INPUT
    except ClickException as exc:
        terminal.complain(_usage(exc))
        return BAD_INPUT
    except PipelineError as exc:
        code = exit_code(exc)
        terminal.complain(Complaint(exc.code, exc.message, code, exc.hint))
        return code
    except OSError as exc:
        terminal.complain(Complaint("os_error", _os_error(exc), OWN_FAULT))
        return OWN_FAULT
    return code if isinstance(code, int) else DONE


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


def _usage(error: ClickException) -> Complaint:
    """Return what is wrong with the command line, and where its help is."""
    message = error.format_message()
    if isinstance(error, NoSuchOption):
        message = f"There is no option {error.option_name}."
        if error.possibilities:
            message += f" Did you mean {error.possibilities[0]}?"
    context = error.ctx if isinstance(error, UsageError) else None
    command = context.command_path if context is not None else PROGRAM
    return Complaint("usage", message, BAD_INPUT, f"`{command} --help` lists what is accepted.")
