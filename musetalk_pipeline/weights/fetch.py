"""Fetches and verifies the published weights: only the files that inference needs.

    python -m musetalk_pipeline.weights fetch  [--version v15|v1] [--models DIR] [--s3fd]
    python -m musetalk_pipeline.weights verify [--version v15|v1] [--models DIR] [--s3fd]

A file is fetched in four steps:
1. Continue `NAME.part` where an earlier attempt ended, or start it.
2. Try again, a bounded number of times, when the connection is cut, stalls or the server is busy.
3. Compare size and SHA-256; a file that differs is deleted and never gets its name.
4. Rename `NAME.part` to `NAME`.

`HF_ENDPOINT` or `--mirror URL` names another Hugging Face server: whoever serves the bytes, the
digests decide. S3FD is not on Hugging Face: a mirror is asked for `URL/s3fd/s3fd-619a316812.pth`,
and where it does not have that, the author's own server is. `verify` needs no network. Exit codes:
0 all files are right, 1 some are not, 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.progress_bar import ProgressBar
from musetalk_pipeline.weights.published import HUGGING_FACE, State, WeightFile, published, state_of

SPARE_BYTES = 256 << 20  # left free on the disk beside the files

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server, and how often to try. Guesses for gigabytes over home lines.

    A connection that brings less than `min_bytes_per_s` over `stall_s` counts as cut.
    """

    connect_s: float = 15.0
    read_s: float = 30.0
    stall_s: float = 60.0
    min_bytes_per_s: int = 1024
    attempts: int = 8
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0


def verify(manifest: Sequence[WeightFile], models: Path) -> dict[str, State]:
    """Return the state of every file, by its path in the manifest. Reads each file once."""
    return {file.path: state_of(file, models / file.path) for file in manifest}


def fetch(
    manifest: Sequence[WeightFile],
    models: Path,
    endpoint: str = HUGGING_FACE,
    patience: Patience | None = None,
) -> None:
    """Bring every file of `manifest` that is not there yet into `models`.

    Raises:
        ModelLoadFailed: a file cannot be had, is not the published one, or does not fit on the
            disk; or `endpoint` is no address. Files that are complete stay; run it again for the
            rest.
    """
    patience = patience or Patience()
    _check_endpoint(endpoint)
    models.mkdir(parents=True, exist_ok=True)
    with _only_fetcher(models):
        wanted = [file for file in manifest if not _is_there(file, models / file.path)]
        _check_space(wanted, models)
        timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s)
        # Compressed answers would make a range of the file mean something else.
        headers = {"Accept-Encoding": "identity"}
        with httpx.Client(timeout=timeout, headers=headers, follow_redirects=True) as client:
            for file in wanted:
                *mirrored, origin = file.urls(endpoint)
                if not any(
                    _is_fetched(client, file, models / file.path, url, patience) for url in mirrored
                ):
                    _fetch_one(client, file, models / file.path, origin, patience)


class _TryAgain(Exception):
    """This attempt failed in a way that the next one may not."""


def _is_fetched(
    client: httpx.Client, file: WeightFile, target: Path, url: str, patience: Patience
) -> bool:
    """Fetch the file from a server that need not have it; tell whether it had."""
    try:
        _fetch_one(client, file, target, url, patience)
    except ModelLoadFailed as exc:
        print(f"{exc} The next server is asked.", file=sys.stderr)
        return False
    return True


def _check_endpoint(endpoint: str) -> None:
    try:
        urlsplit(endpoint)  # httpx lets "http://[a" pass, and asks for that host
        url = httpx.URL(endpoint)
    except (ValueError, httpx.InvalidURL) as exc:
        raise ModelLoadFailed(f"{endpoint!r} is no address of a server: {exc}.") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise ModelLoadFailed(
            f"{endpoint!r} is no address of a server: write it as {HUGGING_FACE}, scheme included."
        )


def _fetch_one(
    client: httpx.Client, file: WeightFile, target: Path, url: str, patience: Patience
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with ProgressBar("bytes") as bar:

        def show(n_bytes: int) -> None:
            bar.show(file.path, n_bytes, file.size_bytes)

        _download(client, file, part, url, patience, show)
    state = state_of(file, part)
    if not state.is_good:
        part.unlink()
        raise ModelLoadFailed(
            f"{url} gave something else than the published {file.path} ({state.value}). It was "
            "deleted. Try again, or another server with --mirror.",
            file=str(target),
        )
    os.replace(part, target)
    print(f"{file.path}: {state.value}", flush=True)


def _download(
    client: httpx.Client,
    file: WeightFile,
    part: Path,
    url: str,
    patience: Patience,
    show: Progress,
) -> None:
    """Fill `part` until the server has given everything."""
    for attempt in range(patience.attempts):
        if attempt:
            # Half of it random, so that many machines do not come back in step.
            wait_s = min(patience.backoff_s * 2 ** (attempt - 1), patience.max_backoff_s)
            time.sleep(wait_s * random.uniform(0.5, 1.0))
        try:
            _continue_download(client, file, part, url, patience, show)
            return
        except (_TryAgain, httpx.TransportError) as exc:
            reason = str(exc) or type(exc).__name__
        except httpx.HTTPError as exc:  # a redirect loop, a malformed address
            raise ModelLoadFailed(f"{url} cannot be fetched: {exc}", file=str(part)) from exc
        except OSError as exc:
            raise ModelLoadFailed(f"{part} cannot be written: {exc}", file=str(part)) from exc
    raise ModelLoadFailed(
        f"{file.path} could not be fetched from {url} in {patience.attempts} attempts; the last "
        f"one ended with: {reason}. What arrived is kept: run the command again to continue.",
        file=str(part),
    )


def _continue_download(
    client: httpx.Client,
    file: WeightFile,
    part: Path,
    url: str,
    patience: Patience,
    show: Progress,
) -> None:
    """Ask for what is missing of `part` and append it. Returns when the file is complete.

    Raises:
        _TryAgain: the answer ended early, stalled, or the server was busy.
        ModelLoadFailed: the server will not give this file.
    """
    held = part.stat().st_size if part.exists() else 0
    if held == file.size_bytes and file.sha256 is not None:
        show(held)
        return
    headers = {"Range": f"bytes={held}-"} if held else {}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # the part is as long as the file, or longer
            if _total_bytes(response) == held:
                return
            part.unlink()
            raise _TryAgain("the partial file did not fit the server's")
        _check_status(response, url)
        held = _first_byte(response, held)
        length = _length(response, file, url)
        with part.open("r+b" if held else "wb") as out:
            out.truncate(held)
            out.seek(held)
            # As it arrives: asked for a size, httpx would keep, and lose, what is less than that.
            for chunk in _brisk(response.iter_raw(), patience):
                held += len(chunk)
                if held > length:
                    raise _TryAgain(f"the server sent more than {length} bytes")
                out.write(chunk)
                show(held)
            out.flush()
            os.fsync(out.fileno())
    if held < length:
        raise _TryAgain(f"the connection ended after {held} of {length} bytes")


def _length(response: httpx.Response, file: WeightFile, url: str) -> int:
    """Return how long the file will be, having compared that with the published length."""
    offered = _total_bytes(response)
    if file.sha256 is None:
        # Only an estimate is published: the server's word is taken, within reason.
        length = file.size_bytes if offered is None else offered
        fits = length <= 2 * file.size_bytes
    else:
        length = file.size_bytes
        fits = offered in (None, length)
    if not fits:
        raise ModelLoadFailed(
            f"{url} offers {offered} bytes, but the published {file.path} has {file.size_bytes}. "
            "Try another server with --mirror.",
            file=file.path,
        )
    return length


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500:
        raise _TryAgain(f"the server answered {status}")
    raise ModelLoadFailed(
        f"{url} answered {status} {response.reason_phrase}. If this server does not offer the "
        "file, name another one with --mirror or HF_ENDPOINT.",
        status=status,
    )


def _first_byte(response: httpx.Response, held: int) -> int:
    """Return which byte of the file the answer begins with, at most `held`."""
    if response.status_code != 206:
        return 0  # a server that knows no ranges sends everything
    # "bytes 100-199/200"
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not start.isdigit() or int(start) > held:
        raise _TryAgain("the server sent another part than was asked for")
    return int(start)


def _total_bytes(response: httpx.Response) -> int | None:
    """Return how long the whole file is, None if the server does not say."""
    if response.status_code in (206, 416):
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdigit() else None


def _brisk(chunks: Iterator[bytes], patience: Patience) -> Iterator[bytes]:
    """Pass `chunks` on; raise _TryAgain when they come too slowly for too long."""
    since, arrived = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        arrived += len(chunk)
        elapsed_s = time.monotonic() - since
        if elapsed_s >= patience.stall_s:
            if arrived < patience.min_bytes_per_s * elapsed_s:
                raise _TryAgain(f"only {arrived} bytes came in {elapsed_s:.0f} s")
            since, arrived = time.monotonic(), 0


def _is_there(file: WeightFile, target: Path) -> bool:
    """Whether the right file is in place already. Never replaces one that is not."""
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
    with (models / ".fetch.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ModelLoadFailed(
                f"Another fetch is filling {models}. Wait for it, or name another folder."
            ) from exc
        yield


def _readable(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def _print_table(manifest: Sequence[WeightFile], states: dict[str, State]) -> None:
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
        help="a server like huggingface.co, also asked for URL/s3fd/s3fd-619a316812.pth; default: "
        "HF_ENDPOINT",
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
