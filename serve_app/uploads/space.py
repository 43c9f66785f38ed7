"""How much room uploads take: a budget of bytes, a number of uploads, and the rest of the disk."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from serve_app.uploads.counts import NOT_COUNTED, UploadCounts
from serve_app.uploads.errors import UploadsFull

FREE_BYTES = 1_000_000_000  # of the disk, which are left to the jobs
MAX_UPLOADS = 2000


class UploadSpace:
    """Counts what each upload may grow to. Safe to use from several threads."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        free_bytes: int = FREE_BYTES,
        counts: UploadCounts = NOT_COUNTED,
    ) -> None:
        self._folder, self.max_bytes, self.free_bytes = folder, max_bytes, free_bytes
        self._counts = counts
        self.taken: dict[str, int] = {}
        self._lock = threading.Lock()
        self._show()

    def take(self, upload_id: str, n_bytes: int) -> None:
        """Let an upload have `n_bytes`, or more if it may have more already.

        Raises:
            UploadsFull: there is no room for that; nothing has changed.
        """
        with self._lock:
            had = self.taken.get(upload_id, 0)
            n_bytes = max(n_bytes, had)
            more = n_bytes - had
            if upload_id not in self.taken and len(self.taken) >= MAX_UPLOADS:
                raise UploadsFull(f"The largest number of uploads, {MAX_UPLOADS}, are kept.")
            if more > 0 and sum(self.taken.values()) + more > self.max_bytes:
                limit = self.max_bytes / 1e9
                raise UploadsFull(f"The space for uploads, {limit:g} GB, is taken.")
            if more > 0 and shutil.disk_usage(self._folder).free - more < self.free_bytes:
                raise disk_is_full()
            self.taken[upload_id] = n_bytes
            self._show()

    def count(self, upload_id: str, n_bytes: int) -> None:
        """Count an upload that is there, whatever the limits are."""
        with self._lock:
            self.taken[upload_id] = n_bytes
            self._show()

    def give_back(self, upload_id: str) -> None:
        """Count an upload no longer."""
        with self._lock:
            self.taken.pop(upload_id, None)
            self._show()

    def set_all(self, taken: dict[str, int]) -> None:
        """Replace all counts by those of the files that exist."""
        with self._lock:
            self.taken = dict(taken)
            self._show()

    def _show(self) -> None:
        self._counts.kept(sum(self.taken.values()))


def disk_is_full() -> UploadsFull:
    """Return the error for a disk without room."""
    return UploadsFull("The disk that uploads are stored on is full.")
