"""The inputs of a command as a person names them: files, and http or https addresses.

An address is fetched as the application fetches one: private networks are refused unless
`ALLOWED_SOURCE_HOSTS` names them, and the size is limited by `WORKER_MAX_FILE_MB`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from musetalk_pipeline.errors import (
    InputName,
    InvalidAudio,
    InvalidOptions,
    InvalidVideo,
    MediaError,
)
from musetalk_pipeline.progress_bar import ProgressBar

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
MAX_STEM_CHARS = 100
WHAT_IS_READ = "Name a file, or an http or https address."


@dataclass(frozen=True, slots=True)
class Source:
    """One input. Either `url` is set, or `path` is a file."""

    name: InputName
    url: str | None
    path: Path


def read_source(
    name: InputName, text: str, *, schemes: Collection[str] = ("http", "https")
) -> Source:
    """Read what a person gave as the video or the audio. `schemes`: of addresses.

    Raises:
        InvalidVideo, InvalidAudio: there is no such file.
    """
    refusal: type[MediaError] = InvalidVideo if name == "video" else InvalidAudio
    scheme = urlsplit(text).scheme.lower() if _ADDRESS.match(text) else ""
    if scheme in schemes:
        return Source(name, text, Path())
    if scheme == "file":
        text = unquote(urlsplit(text).path)
    elif scheme:
        raise refusal(f"{scheme}:// addresses cannot be fetched.", hint=WHAT_IS_READ)
    path = Path(text).expanduser()
    if path.is_dir():
        raise refusal(f"{path} is a folder, not a file.", hint=WHAT_IS_READ)
    if not path.is_file():
        raise refusal(f"There is no {name} file at {path}.", hint=WHAT_IS_READ)
    return Source(name, None, path)


def fetch_others(urls: Iterable[str], folder: Path) -> dict[str, Path]:
    """Return the files of the sounds that segments have of their own; see `fetch`."""
    sources = [(url, read_source("audio", url)) for url in urls]
    return {
        url: fetch(source, folder, f"audio{number}")
        for number, (url, source) in enumerate(sources, 2)
    }


def fetch(source: Source, folder: Path, name: str | None = None) -> Path:
    """Return the file of a source, fetched into `folder` if it is an address. `name`: of the file
    there; None: that of the source.

    Raises:
        SourceRefused, DownloadFailed, MediaTooLarge, InvalidOptions: it cannot be fetched.
        StageFailed: this machine's disk is at fault.
    """
    if source.url is None:
        return source.path
    from serve_app.config.environment import EnvironmentInvalid, read_environment
    from serve_app.inputs.download_body import DownloadLimits
    from serve_app.inputs.downloads import download
    from serve_app.net.addresses import AddressPolicy

    try:
        environment = read_environment()
        policy = AddressPolicy(frozenset(environment.allowed_hosts))
    except (EnvironmentInvalid, ValueError) as exc:
        raise InvalidOptions(f"The environment cannot be used: {exc}.") from exc
    limits = DownloadLimits()
    if environment.max_file_mb is not None:
        limits = DownloadLimits(max_bytes=environment.max_file_mb << 20)
    with ProgressBar("bytes") as bar:
        step = f"fetch {source.name}"
        bar.show(step)
        found = asyncio.run(
            download(
                source.url,
                folder / (name or source.name),
                policy=policy,
                limits=limits,
                on_bytes=lambda done, total: bar.show(step, done, total),
            )
        )
    return found.path


def default_output(source: Source, ending: str) -> Path:
    """Return where the result goes by default: next to the file, and for an address in the
    working folder. `ending` follows the name of the video without its suffix.
    """
    if source.url is None:
        return source.path.with_name(source.path.stem + ending)
    last = unquote(urlsplit(source.url).path).rpartition("/")[2]
    stem = re.sub(r"[^\w.-]", "_", Path(last).stem)[:MAX_STEM_CHARS].lstrip(".-")
    return Path((stem or "video") + ending)


def check_output(path: Path, sources: tuple[Source, ...], *, may_overwrite: bool) -> None:
    """Refuse now what would only fail after the work is done.

    Raises:
        InvalidOptions: there is no such folder, or what is there must not be overwritten.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise InvalidOptions(f"{path} is a folder. Name the file of the result.")
    if not folder.is_dir():
        raise InvalidOptions(f"The folder {folder} does not exist.")
    for source in sources:
        if source.url is None and path.exists() and path.samefile(source.path):
            raise InvalidOptions(
                f"The result would overwrite {path}, which it is made from. Choose another name."
            )
    if path.exists() and not may_overwrite:
        raise InvalidOptions(
            f"{path} exists.", hint="Overwrite it with --force, or choose another name with -o."
        )
