"""Scratch folders: one per attempt, on every node that works on it, gone after the attempt.

The driver releases an attempt's folder when the attempt ends, however it ends. A janitor in every
stage replica removes what a killed ingress or another node left behind: folders that no stage has
touched for longer than a live attempt can be silent (`AppArgs.longest_silence_s`).

The root is in a place that other users and cleaners of temporary files may reach. It is trusted
only if it is a real folder of this user's with mode 0700. It is made again if somebody has removed
it, and nothing in it is removed unless it has the form of an attempt's folder.
"""

import logging
import os
import re
import shutil
import stat
import threading
import time
from pathlib import Path

from musetalk_pipeline.errors import StageFailed
from serve_app.config.folders import make_root
from serve_app.private_folders import (
    FOLDER_MODE,
    FolderRefused,
)

logger = logging.getLogger(__name__)

SWEEP_S = 60.0
_ATTEMPT_ID = re.compile(r"[0-9a-f]{32}")


class Scratch:
    """The scratch root of this node, shared by its replicas.

    Raises:
        FolderRefused: the root cannot be trusted or made.
    """

    def __init__(self, root: Path, stale_s: float) -> None:
        self._root = root
        self._stale_s = stale_s
        make_root(root)

    def folder(self, attempt_id: str) -> Path:
        """Return the attempt's folder, made if necessary, and mark it as in use.

        Raises:
            StageFailed: this machine's disk is at fault, or something else is in the folder's
            place.
        """
        path = self._path(attempt_id)
        try:
            if not self._root.exists():
                logger.warning("the scratch root has been removed, making it again")
            make_root(self._root)  # checked every time, because another user may have made it since
            path.mkdir(exist_ok=True, mode=FOLDER_MODE)
            os.utime(path)
        except (OSError, FolderRefused) as exc:
            logger.error("scratch cannot be used", extra={"error": str(exc)})
            raise StageFailed("This worker cannot write to its scratch folder.") from exc
        return path

    def touch(self, attempt_id: str) -> bool:
        """Mark the attempt's folder as in use; return False if this node has none."""
        try:
            os.utime(self._path(attempt_id))
        except FileNotFoundError:
            return False
        return True

    def release(self, attempt_id: str) -> None:
        """Remove the attempt's folder, if it exists."""
        shutil.rmtree(self._path(attempt_id), ignore_errors=True)

    def sweep(self) -> None:
        """Remove attempts' folders that nothing has touched for `stale_s`.

        The root is made again if it is gone, and touched, so that cleaners of temporary files leave
        it alone.

        Raises:
            FolderRefused, OSError: the root cannot be used now.
        """
        make_root(self._root)
        for folder in (self._root, self._root.parent):
            if folder.stat().st_uid == os.geteuid():
                os.utime(folder)
        oldest = time.time() - self._stale_s
        for path in self._root.iterdir():
            if _ATTEMPT_ID.fullmatch(path.name) and _is_stale_folder(path, oldest):
                logger.warning("stale scratch removed", extra={"attempt": path.name})
                shutil.rmtree(path, ignore_errors=True)

    def start_janitor(self) -> None:
        """Sweep regularly, in a thread that ends with the process."""

        def loop() -> None:
            while True:
                self._sweep_or_log()
                time.sleep(SWEEP_S)

        threading.Thread(target=loop, name="scratch-janitor", daemon=True).start()

    def _sweep_or_log(self) -> None:
        try:
            self.sweep()
        except Exception as exc:  # the janitor survives any fault of the disk
            logger.error("scratch not swept", extra={"error": str(exc)})

    def _path(self, attempt_id: str) -> Path:
        if not _ATTEMPT_ID.fullmatch(attempt_id):
            raise ValueError("an attempt id is 32 hexadecimal digits")
        return self._root / attempt_id


def _is_stale_folder(path: Path, oldest: float) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mtime < oldest
