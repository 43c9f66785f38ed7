"""Outputs in a folder of this machine, served by the ingress.

Writers, readers and the retention (retention.py) hold a lock on the folder for a moment each, in
whatever process they run. So an output that was just written or requested is never removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from musetalk_pipeline.errors import UploadFailed
from musetalk_pipeline.files import create_private, part_name, sync, sync_folder
from serve_app.outputs.store import (
    READ_BLOCK_BYTES,
    SIDECAR_SUFFIX,
    VIDEO_SUFFIX,
    Place,
    StoredOutput,
    object_name,
)
from serve_app.private_folders import FOLDER_MODE

# A writer locks its new file well within this time.
_LOCKED_WITHIN_S = 1.0
_OBJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")


class LocalStore:
    """Stores outputs in a folder that the ingress serves under `/files/{key}`.

    The address of an output is only that path. The ingress turns it into a link in each answer.
    """

    name = "local"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self) -> None:
        """Create the folder, write to it once, and remove what killed writers left half-done."""
        probe = part_name(self._folder / "check")
        try:
            self._make_folder()
            with create_private(probe) as file:
                file.write(b"ok")
            self._remove_abandoned()
        except OSError as exc:
            raise UploadFailed(
                f"Storage check failed: the output folder cannot be written to "
                f"({os.strerror(exc.errno or 0)}). Check its path, owner and free space."
            ) from exc
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def place(self, job_id: str) -> Place:
        return Place(None, None)

    def has(self, job_id: str) -> bool:
        """Return whether the file exists."""
        return self.resolve(object_name(job_id) + VIDEO_SUFFIX) is not None

    def put(self, job_id: str, video: Path, sidecar: bytes) -> StoredOutput:
        """Copy the video, then the sidecar. Each is renamed when it is complete."""
        name = object_name(job_id)
        part = part_name(self._folder / name)
        try:
            self._make_folder()
            with _durable(part) as writer:
                size_bytes, digest = _copy(video, writer)
            with folder_lock(self._folder, fcntl.LOCK_SH):
                os.replace(part, self._folder / (name + VIDEO_SUFFIX))
                with _durable(part) as writer:
                    writer.write(sidecar)
                os.replace(part, self._folder / (name + SIDECAR_SUFFIX))
            # The bytes are on the disk; without this the names might not be after a crash.
            sync_folder(self._folder)
        except OSError as exc:
            raise _folder_failed(exc) from exc
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        location = f"/files/{quote(name + VIDEO_SUFFIX)}"
        return StoredOutput(location, None, None, size_bytes, digest)

    def resolve(self, key: str) -> Path | None:
        """Return the file that `GET /files/{key}` may serve; None for everything else.

        Only names that `put` makes are served, and links are not followed. The access time of the
        video is set to now, so that retention.py keeps the result for a while.
        """
        stem, suffix = os.path.splitext(key)
        if suffix not in (VIDEO_SUFFIX, SIDECAR_SUFFIX) or not _OBJECT_NAME.fullmatch(stem):
            return None
        path = self._folder / key
        with contextlib.suppress(OSError), folder_lock(self._folder, fcntl.LOCK_SH):
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError):  # a sidecar may be without its video
                    video = path.with_suffix(VIDEO_SUFFIX)
                    os.utime(video, ns=(time.time_ns(), video.stat().st_mtime_ns))
                return path
        return None

    def _make_folder(self) -> None:
        # Only a new folder gets this mode. The operator may share an existing one, and its files
        # are private in any case.
        if not self._folder.is_dir():
            self._folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def _remove_abandoned(self) -> None:
        """Remove incomplete files whose writer, in any process, has ended."""
        for part in self._folder.glob(".*.part"):
            with contextlib.suppress(OSError), part.open("rb") as file:
                if time.time() - os.fstat(file.fileno()).st_mtime < _LOCKED_WITHIN_S:
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the writer runs
                part.unlink()


def _folder_failed(exc: OSError) -> UploadFailed:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return UploadFailed("Upload failed: the disk of the output folder is full.")
    return UploadFailed(
        f"Upload failed: the output folder cannot be written to ({os.strerror(exc.errno or 0)})."
    )


@contextlib.contextmanager
def folder_lock(folder: Path, kind: int) -> Iterator[None]:
    """Hold `fcntl.LOCK_SH` or `LOCK_EX` on `folder`. The kernel frees it if the process ends.

    Raises:
        OSError: the folder does not exist.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _durable(target: Path) -> Iterator[BinaryIO]:
    """Open a new file that is locked while it is written and on the disk itself afterwards."""
    with create_private(target) as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        yield writer
        sync(writer)  # a result that was reported must survive the machine's next crash


def _copy(source: Path, writer: BinaryIO) -> tuple[int, str]:
    """Copy a file; return its size in bytes and SHA-256 in hex."""
    digest = hashlib.sha256()
    size_bytes = 0
    with source.open("rb") as reader:
        while block := reader.read(READ_BLOCK_BYTES):
            digest.update(block)
            size_bytes += len(block)
            writer.write(block)
    return size_bytes, digest.hexdigest()
