"""Avatars in a folder of this machine, shared by all of its replicas and jobs.

    <folder>/<avatar id>/<name>      each file sealed by its digest, as block_file.py does

A file appears when it is complete, and is verified whenever it is read; a damaged one is removed,
so that it is made again. The time of its last use is its modification time. What was not used for
too long is removed, and beyond the budget the least recently used avatars are. Writers and readers
hold a shared lock on the folder for a moment, and whoever removes files an exclusive one.

Nothing here fails a job: a disk that is full or faulty only costs the entry.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from musetalk_pipeline.avatars.block_file import DamagedFileError, seal, unseal
from musetalk_pipeline.files import FILE_MODE, create_private, part_name
from serve_app.outputs.local import folder_lock
from serve_app.private_folders import FOLDER_MODE, FolderRefused, private_folder

logger = logging.getLogger(__name__)

SETTING = "avatars.folder"
SWEEP_S = 300.0
# Between two sweeps a process may write so much of the budget.
SWEEP_SHARE = 0.02
# A cache leaves this much of the disk to the jobs.
FREE_BYTES = 1_000_000_000
ABANDONED_S = 3600.0  # an incomplete file that nobody has written to for so long
_AVATAR_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,127}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of an avatar. `used`: seconds since the epoch."""

    avatar_id: str
    name: str
    size_bytes: int
    used: float


class LocalAvatars:
    """The avatars on this machine.

    `first_to_go`: the suffix of the files that are removed before the others of their avatar.

    Raises:
        FolderRefused: the folder cannot be trusted or made.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: float,
        keep_s: float,
        *,
        first_to_go: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._first_to_go = first_to_go
        self._clock = clock
        self._written_bytes = 0  # since this process swept
        private_folder(folder, SETTING)

    def names(self, avatar_id: str) -> frozenset[str]:
        """Return the names of an avatar's files."""
        with contextlib.suppress(OSError):
            return frozenset(
                name for name in os.listdir(self._of(avatar_id)) if _NAME.fullmatch(name)
            )
        return frozenset()

    def read(self, avatar_id: str, name: str, *, is_use: bool = True) -> bytes | None:
        """Return the payload of a file. None if there is none, or a damaged one, which is removed.

        `is_use`: whether this marks the file as used.
        """
        content = self.read_sealed(avatar_id, name, is_use=is_use)
        if content is None:
            return None
        try:
            return unseal(content)
        except DamagedFileError as exc:
            self.remove_damaged(avatar_id, name, exc)
            return None

    def read_sealed(self, avatar_id: str, name: str, *, is_use: bool = True) -> bytes | None:
        """Return a file as it is, for whoever verifies it."""
        path = self._of(avatar_id) / _checked(name)
        try:
            with folder_lock(self._folder, fcntl.LOCK_SH):
                content = path.read_bytes()
                if is_use:
                    self._mark_used(path)
        except FileNotFoundError:
            return None
        except OSError as exc:
            _warn("an avatar cannot be read", avatar_id, exc)
            return None
        return content

    def remove_damaged(self, avatar_id: str, name: str, fault: DamagedFileError) -> None:
        """Remove a file whose content is not what was written."""
        extra = {"avatar": avatar_id, "file": name, "fault": str(fault)}
        logger.warning("a damaged file of an avatar is removed", extra=extra)
        with contextlib.suppress(OSError):
            (self._of(avatar_id) / _checked(name)).unlink(missing_ok=True)

    def write(self, avatar_id: str, name: str, payload: bytes) -> bool:
        """Keep a payload; see `write_sealed`."""
        return self.write_sealed(avatar_id, name, seal(payload))

    def write_sealed(self, avatar_id: str, name: str, content: bytes) -> bool:
        """Keep a file under its name; return False if that is not possible."""

        def fill(part: Path) -> None:
            with create_private(part) as file:
                file.write(content)

        return self._put(avatar_id, name, len(content), fill)

    def write_copy(self, avatar_id: str, name: str, source: Path) -> bool:
        """Keep a copy of a whole file, which is not sealed; return False if that is not possible.
        On the same disk no bytes are copied.
        """

        def fill(part: Path) -> None:
            _link_or_copy(source, part)
            part.chmod(FILE_MODE)

        try:
            size_bytes = source.stat().st_size
        except OSError as exc:
            _warn("an avatar is not kept", avatar_id, exc)
            return False
        return self._put(avatar_id, name, size_bytes, fill)

    def copy_out(self, avatar_id: str, name: str, target: Path) -> bool:
        """Copy a file that `write_copy` has kept, and mark it as used; False if there is none.

        Raises:
            OSError: it cannot be copied.
        """
        path = self._of(avatar_id) / _checked(name)
        with folder_lock(self._folder, fcntl.LOCK_SH):
            try:
                _link_or_copy(path, target)
            except FileNotFoundError:
                return False
            self._mark_used(path)
        return True

    def _put(
        self, avatar_id: str, name: str, size_bytes: int, fill: Callable[[Path], None]
    ) -> bool:
        if size_bytes > self._max_bytes:
            return False
        path = self._of(avatar_id) / _checked(name)
        part = part_name(path)
        try:
            self._make(avatar_id)
            if shutil.disk_usage(self._folder).free < FREE_BYTES + size_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fill(part)
            with folder_lock(self._folder, fcntl.LOCK_SH):
                self._mark_used(part)
                part.replace(path)
        except (OSError, FolderRefused) as exc:
            _warn("an avatar is not kept", avatar_id, exc)
            return False
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        self._written_bytes += size_bytes
        if self._written_bytes > SWEEP_SHARE * self._max_bytes:
            self.sweep()
        return True

    def files(self) -> list[StoredFile]:
        """Return all files of all avatars."""
        return list(self._files())

    def delete(self, avatar_id: str) -> bool:
        """Remove an avatar; return whether there was one."""
        names = self.names(avatar_id)
        with contextlib.suppress(OSError), folder_lock(self._folder, fcntl.LOCK_EX):
            shutil.rmtree(self._of(avatar_id), ignore_errors=True)
        return bool(names)

    def sweep(self) -> None:
        """Remove what is too old, what exceeds the budget, and what killed writers left."""
        self._written_bytes = 0
        try:
            private_folder(self._folder, SETTING)
            with folder_lock(self._folder, fcntl.LOCK_EX):
                self._remove_excess()
                self._remove_abandoned()
        except (OSError, FolderRefused) as exc:
            logger.warning("kept avatars are not swept", extra={"error": str(exc)})

    def start_janitor(self) -> None:
        """Sweep every few minutes, in a thread that ends with the process."""

        def loop() -> None:
            while True:
                try:
                    self.sweep()
                except Exception:  # the folder may be accessible again in the next round
                    logger.exception("kept avatars are not swept")
                time.sleep(SWEEP_S)

        threading.Thread(target=loop, name="avatar-janitor", daemon=True).start()

    def _remove_excess(self) -> None:
        files = self.files()
        last_used: dict[str, float] = {}
        for file in files:
            last_used[file.avatar_id] = max(file.used, last_used.get(file.avatar_id, 0.0))
        # One avatar after the other; within an avatar, first what can be removed alone.
        files.sort(
            key=lambda file: (
                last_used[file.avatar_id],
                file.avatar_id,
                not file.name.endswith(self._first_to_go),
                file.used,
            )
        )
        excess = sum(file.size_bytes for file in files) - self._max_bytes
        oldest = self._clock() - self._keep_s
        removed = 0
        for file in files:
            if excess <= 0 and last_used[file.avatar_id] >= oldest:
                continue
            (self._of(file.avatar_id) / file.name).unlink(missing_ok=True)
            excess -= file.size_bytes
            removed += 1
        if removed:
            logger.info("files of avatars removed", extra={"files": removed})

    def _remove_abandoned(self) -> None:
        """Remove incomplete files and empty folders that nobody works on."""
        oldest = self._clock() - ABANDONED_S
        for folder in self._folders():
            for part in folder.glob(".*.part"):
                with contextlib.suppress(OSError):
                    if part.stat().st_mtime < oldest:
                        part.unlink()
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < oldest:
                    folder.rmdir()  # fails unless it is empty

    def _files(self) -> Iterator[StoredFile]:
        for folder in self._folders():
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if not _NAME.fullmatch(entry.name):
                        continue
                    with contextlib.suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        yield StoredFile(folder.name, entry.name, found.st_size, found.st_mtime)

    def _folders(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self._folder)):
                if _AVATAR_ID.fullmatch(name):
                    yield self._folder / name

    def _mark_used(self, path: Path) -> None:
        now = self._clock()
        os.utime(path, (now, now))

    def _make(self, avatar_id: str) -> None:
        private_folder(self._folder, SETTING)  # a cleaner may have removed it
        self._of(avatar_id).mkdir(mode=FOLDER_MODE, exist_ok=True)

    def _of(self, avatar_id: str) -> Path:
        if not _AVATAR_ID.fullmatch(avatar_id):
            raise ValueError("an avatar's id is 32 hexadecimal digits")
        return self._folder / avatar_id


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("a file of an avatar has a plain name")
    return name


def _link_or_copy(source: Path, target: Path) -> None:
    """Give `target` the content of `source`; nobody writes into either afterwards."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def _warn(message: str, avatar_id: str, exc: Exception) -> None:
    why = os.strerror(exc.errno or 0) if isinstance(exc, OSError) else str(exc)
    logger.warning(message, extra={"avatar": avatar_id, "error": why})
