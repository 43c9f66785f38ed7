"""`lipsync weights fetch|verify`: the published weights."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipsync.flags import Json
from lipsync.terminal import terminal_of
from musetalk_pipeline.options import Version

if TYPE_CHECKING:
    from lipsync.terminal import Terminal
    from musetalk_pipeline.weights.manifest import FileState, WeightFile

READERS = 4  # files that are read concurrently; one core computes less than a fast disk delivers
RUNPOD_INIT_S = 420.0  # RunPod's own default

app = typer.Typer(help="Fetch or verify the published weights.", no_args_is_help=True)

VersionFlag = Annotated[
    Version, typer.Option(help="The weights are those of this version of the model.")
]
Models = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The weights are in this folder. Default: models/ here, else in the project.",
        show_default=False,
    ),
]
S3fd = Annotated[
    bool,
    typer.Option("--s3fd", metavar="", help="The detector of `face_presence: s3fd` is included."),
]
Listed = Annotated[
    Path | None,
    typer.Option(
        "--list",
        metavar="FILE",
        help="The files are those of this list, and not the published ones (docs/images.md).",
        show_default=False,
    ),
]


@app.command()
def fetch(
    context: typer.Context,
    version: VersionFlag = "v15",
    models: Models = None,
    s3fd: S3fd = False,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The files are fetched from this server, which is laid out like huggingface.co. "
            "Default: HF_ENDPOINT, else huggingface.co.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Fetch the files that are missing, and compare them with their published digests.

    A file that was begun is continued. A file that differs from the published one never gets its
    name. Everything together is some 4.5 GB.
    """
    from musetalk_pipeline.loading import find_models
    from musetalk_pipeline.weights.fetch import fetch as fetch_all
    from musetalk_pipeline.weights.manifest import HUGGING_FACE, published

    terminal = terminal_of(context)
    terminal.stopping.last_words = "what has arrived is kept, and the same command continues"
    folder = find_models(models, Path.cwd())
    endpoint = mirror or os.environ.get("HF_ENDPOINT") or HUGGING_FACE
    with terminal.quiet_stdout():
        fetch_all(published(version, with_s3fd=s3fd), folder, endpoint)
    terminal.result({"status": "success", "models": str(folder)}, [("weights", str(folder))])


@app.command()
def verify(
    context: typer.Context,
    version: VersionFlag = "v15",
    models: Models = None,
    s3fd: S3fd = False,
    listed: Listed = None,
    json: Json = False,
) -> None:
    """Compare the files with their published digests, without the network.

    The exit code is 0 if all files are right, and 1 if some are missing or differ.
    """
    from musetalk_pipeline.loading import find_models
    from musetalk_pipeline.weights.listed import read_list
    from musetalk_pipeline.weights.manifest import published
    from serve_app.one_shot.exit_codes import OWN_FAULT

    terminal = terminal_of(context)
    folder = find_models(models, Path.cwd())
    manifest = published(version, with_s3fd=s3fd) if listed is None else read_list(listed)
    states = _states(manifest, folder, terminal)
    is_right = all(state.is_good for state in states.values())
    files = {path: state.value for path, state in states.items()}
    facts = {"models": str(folder), "is_right": is_right, "files": files}
    terminal.result(facts, files.items())
    if not is_right:
        remedy = "`lipsync weights fetch` fetches what is missing."
        terminal.say(remedy if listed is None else "Pull the image again, or build it again.")
        raise typer.Exit(OWN_FAULT)


def _states(
    manifest: Sequence[WeightFile], models: Path, terminal: Terminal
) -> dict[str, FileState]:
    """Return the state of every file, by its path in the manifest. Reads each file once."""
    from musetalk_pipeline.progress_bar import ProgressBar
    from musetalk_pipeline.weights.manifest import state_of

    total = sum(file.size_bytes for file in manifest)
    done, states, began, warning = 0, {}, time.monotonic(), None
    with ProgressBar("bytes") as bar, ThreadPoolExecutor(READERS) as readers:
        reading = readers.map(lambda file: state_of(file, models / file.path), manifest)
        for file, state in zip(manifest, reading, strict=True):
            states[file.path] = state
            done += file.size_bytes
            bar.show("verify", done, total)
            expected_s = (time.monotonic() - began) * total / max(1, done)
            if warning is None and (warning := too_long(expected_s, os.environ)):
                terminal.say(warning)
    return states


def too_long(expected_s: float, environ: Mapping[str, str]) -> str | None:
    """Return a sentence if RunPod would stop this worker before it has read its files."""
    given = environ.get("RUNPOD_INIT_TIMEOUT", "")
    if not given and "RUNPOD_POD_ID" not in environ:
        return None
    limit_s = float(given) if given.replace(".", "", 1).isdecimal() else RUNPOD_INIT_S
    if expected_s < limit_s:
        return None
    return (
        f"Reading the weights takes about {expected_s:.0f} s, and RunPod stops a worker that is "
        f"not ready after {limit_s:.0f} s: set RUNPOD_INIT_TIMEOUT to {2 * expected_s:.0f}."
    )
