"""Fetches and verifies the published weights: only the files that inference needs.

    python -m musetalk_pipeline.weights fetch  [--version v15|v1] [--models DIR] [--s3fd]
    python -m musetalk_pipeline.weights verify [--version v15|v1] [--models DIR] [--s3fd]

A file is fetched in four steps:
1. `NAME.part` is continued where an earlier attempt ended, or begun.
2. The download is tried again, a bounded number of times, if the connection is cut or stalls, or if
   the server is busy.
3. Size and SHA-256 are compared. A file that differs is deleted and never gets its name.
4. `NAME.part` is renamed to `NAME`.

`HF_ENDPOINT` or `--mirror URL` names another Hugging Face server. It need not be trusted, because
the digests decide. S3FD is not on Hugging Face: it is looked for at
`URL/s3fd/s3fd-619a316812.pth`, and then on its author's own server. `verify` needs no network. The
exit code is 0 if all files are right, 1 if some are not, and 2 if the command line is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from filelock import FileLock, Timeout

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.progress_bar import ProgressBar
from musetalk_pipeline.weights.manifest import (
    HUGGING_FACE,
    FileState,
    WeightFile,
    published,
    state_of,
)
from musetalk_pipeline.weights.transfer import Patience, Transfer

SPARE_BYTES = 256 << 20  # left free on the disk in addition


def verify(manifest: Sequence[WeightFile], models: Path) -> dict[str, FileState]:
    """Return the state of every file, by its path in the manifest. Reads each file once."""
    return {file.path: state_of(file, models / file.path) for file in manifest}


def fetch(
    manifest: Sequence[WeightFile],
    models: Path,
    endpoint: str = HUGGING_FACE,
    patience: Patience | None = None,
) -> None:
    """Download every file of `manifest` that is not in `models` yet.

    Raises:
        ModelLoadFailed: a file cannot be had, is not the published one, or does not fit on the
            disk; or `endpoint` is not a server's URL. Files that are complete stay. Run it again
            for the rest.
    """
    patience = patience or Patience()
    _check_endpoint(endpoint)
    models.mkdir(parents=True, exist_ok=True)
    with _only_fetcher(models):
        wanted = [file for file in manifest if not _is_there(file, models / file.path)]
        _check_space(wanted, models)
        timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s)
        # A range of a compressed answer would not be a range of the file.
        headers = {"Accept-Encoding": "identity"}
        with httpx.Client(timeout=timeout, headers=headers, follow_redirects=True) as client:
            for file in wanted:
                *mirrored, origin = file.urls(endpoint)
                if not any(
                    _is_fetched(client, file, models / file.path, url, patience) for url in mirrored
                ):
                    _fetch_one(client, file, models / file.path, origin, patience)


def _is_fetched(
    client: httpx.Client, file: WeightFile, target: Path, url: str, patience: Patience
) -> bool:
    """Fetch the file from a server that may lack it; return whether it had the file."""
    try:
        _fetch_one(client, file, target, url, patience)
    except ModelLoadFailed as exc:
        print(f"{exc} Asking the next server.", file=sys.stderr)
        return False
    return True


def _check_endpoint(endpoint: str) -> None:
    try:
        urlsplit(endpoint)  # httpx lets "http://[a" pass, and then looks up that host
        url = httpx.URL(endpoint)
    except (ValueError, httpx.InvalidURL) as exc:
        raise ModelLoadFailed(f"{endpoint!r} is not a valid server URL: {exc}.") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise ModelLoadFailed(
            f"{endpoint!r} is not a valid server URL: write it as {HUGGING_FACE}, scheme included."
        )


def _fetch_one(
    client: httpx.Client, file: WeightFile, target: Path, url: str, patience: Patience
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with ProgressBar("bytes") as bar:

        def show(n_bytes: int) -> None:
            bar.show(file.path, n_bytes, file.size_bytes)

        Transfer(client, file, url, part, patience, show).run()
    state = state_of(file, part)
    if not state.is_good:
        part.unlink()
        raise ModelLoadFailed(
            f"{url} sent something else than the published {file.path} ({state.value}). It was "
            "deleted. Try again, or another server with --mirror.",
            file=str(target),
        )
    os.replace(part, target)
    print(f"{file.path}: {state.value}", flush=True)


def _is_there(file: WeightFile, target: Path) -> bool:
    """Return whether the right file is in place already. A wrong one is never replaced."""
    if not target.exists():
        return False
    state = state_of(file, target)
    if state.is_good:
        return True
    raise ModelLoadFailed(
        f"{target} is there, but it is not the published file ({state.value}). Move it away and "
        "run the command again.",
        file=str(target),
    )


def _check_space(wanted: Sequence[WeightFile], models: Path) -> None:
    missing = 0
    for file in wanted:
        part = models / f"{file.path}.part"
        missing += max(0, file.size_bytes - (part.stat().st_size if part.exists() else 0))
    free = shutil.disk_usage(models).free
    if wanted and missing + SPARE_BYTES > free:
        raise ModelLoadFailed(
            f"The weights need {_readable(missing)} more and {_readable(SPARE_BYTES)} to spare, "
            f"but the disk of {models} has {_readable(free)} free. Make room, or name another "
            "folder with --models."
        )


@contextlib.contextmanager
def _only_fetcher(models: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two fetches do not write one partial file."""
    try:
        held = FileLock(models / ".fetch.lock").acquire(blocking=False)
    except Timeout as exc:
        raise ModelLoadFailed(
            f"Another fetch is filling {models}. Wait for it, or name another folder."
        ) from exc
    with held:
        yield


def _readable(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def _print_table(manifest: Sequence[WeightFile], states: dict[str, FileState]) -> None:
    width = max(len(file.path) for file in manifest)
    for file in manifest:
        about = "about " if file.sha256 is None else ""
        print(
            f"{file.path:<{width}}  {about + _readable(file.size_bytes):>14}  "
            f"{states[file.path].value}"
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m musetalk_pipeline.weights",
        description="Fetch or verify the published weights.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--version", choices=("v15", "v1"), default="v15")
    common.add_argument("--models", type=Path, default=Path("models"), metavar="DIR")
    common.add_argument(
        "--s3fd", action="store_true", help="also the detector of `face_presence: s3fd`"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fetch", parents=[common], help="download what is missing")
    command.add_argument(
        "--mirror",
        metavar="URL",
        help="a server like huggingface.co; S3FD is fetched from URL/s3fd/s3fd-619a316812.pth; "
        "default: HF_ENDPOINT",
    )
    commands.add_parser("verify", parents=[common], help="check the files; needs no network")
    return parser.parse_args(arguments)


def main(
    arguments: Sequence[str] | None = None,
    manifest: Sequence[WeightFile] | None = None,
    patience: Patience | None = None,
) -> int:
    """Run the command line and return its exit code; `manifest` replaces the published one."""
    options = _parse(arguments)
    if manifest is None:
        manifest = published(options.version, with_s3fd=options.s3fd)
    if options.command == "verify":
        states = verify(manifest, options.models)
        _print_table(manifest, states)
        return 0 if all(state.is_good for state in states.values()) else 1
    # httpx reports every redirect at INFO, signed query strings included.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    endpoint = options.mirror or os.environ.get("HF_ENDPOINT") or HUGGING_FACE
    try:
        fetch(manifest, options.models, endpoint, patience)
    except ModelLoadFailed as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Run the command again to continue.", file=sys.stderr)
        return 1
    print(f"All weights are in {options.models}.")
    return 0
