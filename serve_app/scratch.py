"""Scratch folders: one per attempt, on every node that works on it, gone after the attempt.

The driver releases an attempt's folder when the attempt ends, however it ends. A janitor in every
stage replica removes what a killed ingress or another node left: folders that no stage has touched
for a while.
"""

import logging
import os
import shutil
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)

STALE_S = 1800.0  # longer than any one call may take without touching its attempt's folder
SWEEP_S = 60.0


class Scratch:
    """The scratch root of this node, shared by its replicas."""

    def __init__(self, root: Path, stale_s: float = STALE_S) -> None:
        self._root = root
        self._stale_s = stale_s
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, attempt_id: str) -> Path:
        """Return the attempt's folder, made if need be, and say that it is in use."""
        path = self._path(attempt_id)
        path.mkdir(exist_ok=True, mode=0o700)
        os.utime(path)
        return path

    def touch(self, attempt_id: str) -> bool:
        """Say that the attempt's folder is in use; False if this node has none."""
        try:
            os.utime(self._path(attempt_id))
        except FileNotFoundError:
            return False
        return True

    def release(self, attempt_id: str) -> None:
        """Remove the attempt's folder. Harmless when it is gone."""
        shutil.rmtree(self._path(attempt_id), ignore_errors=True)

    def sweep(self) -> None:
        """Remove folders that nothing has touched for `stale_s`."""
        oldest = time.time() - self._stale_s
        for path in self._root.iterdir():
            try:
                stale = path.stat().st_mtime < oldest
            except FileNotFoundError:
                continue
            if stale:
                logger.warning("stale scratch removed", extra={"attempt": path.name})
                shutil.rmtree(path, ignore_errors=True)

    def start_janitor(self) -> None:
        """Sweep now and then, in a thread that ends with the process."""

        def loop() -> None:
            while True:
                self.sweep()
                time.sleep(SWEEP_S)

        threading.Thread(target=loop, name="scratch-janitor", daemon=True).start()

    def _path(self, attempt_id: str) -> Path:
        if not attempt_id.isalnum():
            raise ValueError("an attempt id is hexadecimal")
        return self._root / attempt_id
