"""Sources on the disk of this machine: file:// addresses below folders that the operator allows."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from musetalk_pipeline.errors import DownloadFailed, SourceRefused
from serve_app.telemetry.redact import shown_url


def open_allowed_file(url: str, allowed_folders: Sequence[Path]) -> BinaryIO:
    """Open the regular file that a file:// URL names, if it really lies in an allowed folder.

    The open file is checked, not only the path, because a link may be put in its place in between.

    Raises:
        SourceRefused: it has a host, lies outside the folders, or is not a regular file.
        DownloadFailed: the file does not exist or cannot be read.
    """
    refused = SourceRefused(
        "Source refused: file:// addresses are only read from the folders that the operator "
        "allows.",
        hint="If this worker is yours, name the folder in LIPSYNC_ALLOWED_FOLDERS or "
        "inputs.allowed_folders.",
        url=shown_url(url),
    )
    path = _path_of_file_url(url)
    folders = [folder.resolve() for folder in allowed_folders]
    if path is None:
        refused.hint = "Write it as file:///folder/name, with three slashes, no host and no query."
    if path is None or not _is_below(Path(os.path.realpath(path)), folders):
        raise refused
    try:
        # Without O_NONBLOCK a named pipe would block this thread until another process writes to
        # it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise DownloadFailed(
            "Download failed: the file does not exist or cannot be read.",
            hint="Check the path, and that the worker's user may read the file.",
            url=shown_url(url),
        ) from exc
    opened = Path(os.path.realpath(f"/proc/self/fd/{descriptor}"))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _is_below(opened, folders):
        os.close(descriptor)
        raise refused
    return os.fdopen(descriptor, "rb")


def _path_of_file_url(url: str) -> str | None:
    """Return the absolute path that a file:// URL names; None if it is malformed."""
    try:
        parts = urlsplit(url)
        path = unquote(parts.path, errors="strict")
        path.encode("utf-8")  # half a surrogate pair is not a file name
    except ValueError:
        return None
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        return None
    return path if path.startswith("/") and "\0" not in path else None


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) and path != folder for folder in folders)
