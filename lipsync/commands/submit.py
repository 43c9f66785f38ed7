"""`lipsync submit`, `lipsync estimate` and `lipsync upload`: files and jobs to a server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync.flags import OF_A_REQUEST, Audio, Force, Json, Video, takes_params
from lipsync.remote import Server, client_of, rows_of, show_end
from lipsync.sources import check_output, default_output, read_source
from lipsync.terminal import Complaint, Terminal, terminal_of
from serve_app.one_shot.exit_codes import BAD_INPUT

if TYPE_CHECKING:
    from lipsync.sources import Source
    from lipsync_client import Estimate, LipsyncClient, Upload

SCHEMES = ("http", "https", "upload")  # of addresses that the server reads


@takes_params
def submit(
    context: typer.Context,
    video: Video,
    audio: Audio,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write the result to this file. Default: VIDEO-lipsync.mp4 next to the video.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", "-d", metavar="", help="Submit the job, print it, and do not wait for it."
        ),
    ] = False,
    id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The job gets this id, if it is new.")
    ] = None,
    webhook_url: Annotated[
        str | None,
        typer.Option("--webhook-url", metavar="URL", help="The server calls this at the end."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="NAME=VALUE", help="This is stored with the job."),
    ] = None,
    server: Server = None,
    json: Json = False,
    *,
    chosen: dict[str, Any],
) -> None:
    """Have a server make the face in VIDEO speak AUDIO, and fetch the result.

    Files are uploaded, and addresses are fetched by the server. Ctrl-C does not end the job:
    `lipsync watch ID` shows it again, and `lipsync download ID` fetches its result. The key is
    LIPSYNC_API_KEY or INGRESS_API_KEY.
    """
    terminal = terminal_of(context)
    sources = _sources(video, audio)
    target = out or default_output(sources[0], "-lipsync.mp4")
    if not detach:
        check_output(target, sources, may_overwrite=force)
    fields = _fields(chosen) | {
        "job_id": id,
        "webhook_url": webhook_url,
        "metadata": _metadata(terminal, metadata),
    }
    with client_of(terminal, server) as client:
        addresses = [_uploaded(client, source) for source in sources]
        job = client.submit(*addresses, **{k: v for k, v in fields.items() if v is not None})
        if detach:
            terminal.result(job.raw, (rows_of(job) | _next_steps(job.id)).items())
        else:
            _wait_and_fetch(terminal, client, job.id, target, may_overwrite=force)


@takes_params
def estimate(
    context: typer.Context,
    video: Video,
    audio: Audio,
    server: Server = None,
    json: Json = False,
    *,
    chosen: dict[str, Any],
) -> None:
    """Print what a job would take: frames, size, seconds, dollars, and the wait before it.

    The server learns that from its own jobs. Files are uploaded for it, and the addresses that are
    printed can be used in place of them until the uploads expire.
    """
    terminal = terminal_of(context)
    sources = _sources(video, audio)
    with client_of(terminal, server) as client:
        addresses = [_uploaded(client, source) for source in sources]
        with terminal.working("estimating"):
            made = client.estimate(*addresses, **_fields(chosen))
    inputs = {"video_url": _address(addresses[0]), "audio_url": _address(addresses[1])}
    terminal.result({**made.raw, **inputs}, [*_rows(made), *inputs.items()])


def upload(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A video, a picture or a sound.")],
    server: Server = None,
    json: Json = False,
) -> None:
    """Send a file to a server, and print the address that jobs may use it by.

    An upload that breaks off is continued. The server deletes it after a while.
    """
    from lipsync.job_progress import Transfers

    terminal = terminal_of(context)
    with client_of(terminal, server) as client, Transfers("upload") as shown:
        made = client.upload(file, shown.show)
    rows = [("address", made.url), ("kind", made.kind), ("expires at", made.expires_at)]
    terminal.result(made.raw, [(name, value) for name, value in rows if value is not None])


def _wait_and_fetch(
    terminal: Terminal, client: LipsyncClient, job_id: str, target: Path, *, may_overwrite: bool
) -> None:
    """Show a job until it ends, write its result into `target`, and show how it ended."""
    from lipsync.job_progress import Transfers, follow

    terminal.say(f"The job {job_id} is submitted.")
    job = follow(terminal, client, job_id)
    output = {}
    if job.status == "succeeded":
        with Transfers("download") as shown:
            client.download(job.id, target, shown.show, may_overwrite=may_overwrite)
        output = {"output": str(target)}
    show_end(terminal, job, **output)


def _sources(video: str, audio: str) -> tuple[Source, Source]:
    return (
        read_source("video", video, schemes=SCHEMES),
        read_source("audio", audio, schemes=SCHEMES),
    )


def _uploaded(client: LipsyncClient, source: Source) -> str | Upload:
    """Return a source as the client takes it. A file is uploaded, with its progress shown."""
    from lipsync.job_progress import Transfers

    if source.url is not None:
        return source.url
    with Transfers(f"upload {source.name}") as shown:
        return client.upload(source.path, shown.show)


def _address(source: str | Upload) -> str:
    return source if isinstance(source, str) else source.url


def _fields(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a job as the client takes them."""
    fields = {name: chosen[name] for name in OF_A_REQUEST if name in chosen}
    params = {name: _plain(value) for name, value in chosen.items() if name not in OF_A_REQUEST}
    return fields | ({"params": params} if params else {})


def _plain(value: Any) -> Any:
    """Return the value of an option as JSON can hold it; some are values of several fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _metadata(terminal: Terminal, pairs: list[str] | None) -> dict[str, str] | None:
    found = {}
    for pair in pairs or ():
        name, is_pair, value = pair.partition("=")
        if not is_pair:
            terminal.complain(Complaint("usage", f"{pair!r} is not NAME=VALUE.", BAD_INPUT))
            raise typer.Exit(BAD_INPUT)
        found[name] = value
    return found or None


def _next_steps(job_id: str) -> dict[str, str]:
    return {"to follow it": f"lipsync watch {job_id}", "to end it": f"lipsync cancel {job_id}"}


def _rows(made: Estimate) -> Iterator[tuple[str, str]]:
    yield "frames", f"{made.frames}, {made.width}x{made.height}, {made.fps:.5g} frames/s"
    yield "length", f"{made.duration_s:.2f} s"
    yield "seconds", f"about {made.seconds:.0f}"
    if made.queue_s:
        yield "wait before", f"about {made.queue_s:.0f} s"
    if made.usd is not None:
        yield "dollars", f"about {made.usd:.4f}"
    jobs = made.basis.get("jobs")
    is_learnt = made.basis.get("speeds") == "receipts"
    yield "learnt from", f"{jobs} jobs" if is_learnt else "the configuration, which is a guess"
