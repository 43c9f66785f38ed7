"""Small operations on files: complete under their name or absent, on the disk itself, private."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FILE_MODE = 0o600


def part_name(path: Path) -> Path:
    """Return the name that `path` has while it is written: in its folder, hidden and unguessable.

    Nobody can have made a link of that name, in a folder that others may write to.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name; rename it to `path` at the end, or remove it on any error."""
    part = part_name(path)
    try:
        yield part
        if part.exists():
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def create_private(path: Path) -> BinaryIO:
    """Open a new file for writing that only this user may read.

    Raises:
        FileExistsError: there is one already.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, FILE_MODE), "wb")


def sync(file: BinaryIO) -> None:
    """Put what was written on the disk itself, so that it survives a crash of the machine."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk itself, so that a rename survives a crash."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a private file that is there whole or not at all, also after a power cut."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # what a killed writer left
        with create_private(part) as file:
            file.write(text.encode())
            sync(file)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
