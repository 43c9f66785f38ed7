"""The folder of uploads, read: by the ingress that fills it, and by the stages on its node.

<folder>/<id>.json    the record: who sent it, its name, its length, what it was found to be
<folder>/<id>.data    the bytes that have arrived
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from musetalk_pipeline.options import MediaLimits
from serve_app.uploads.records import Record, Upload, is_upload_id, read_record

RECORD, DATA = ".json", ".data"


@dataclass(frozen=True, slots=True)
class UploadRules:
    """How long uploads are kept, in seconds, and what a file may be."""

    keep_s: float
    unfinished_s: float
    media: MediaLimits = field(default_factory=MediaLimits)


class UploadFolder:
    """Finds uploads by their ids, whoever owns them. All methods block on the disk."""

    def __init__(
        self, folder: Path, rules: UploadRules, clock: Callable[[], float] = time.time
    ) -> None:
        self.path, self.rules, self.clock = folder, rules, clock

    def file(self, upload_id: str, suffix: str) -> Path:
        """Return the path of one of the two files of an upload."""
        return self.path / (upload_id + suffix)

    def find(self, upload_id: str) -> Upload | None:
        """Return an upload that has not expired."""
        upload = self.load(upload_id)
        return upload if upload is not None and upload.expires > self.clock() else None

    def all(self) -> Iterator[Upload]:
        """Yield the uploads that have not expired."""
        for path in self.path.glob(f"*{RECORD}"):
            upload = self.find(path.stem)
            if upload is not None:
                yield upload

    def load(self, upload_id: str) -> Upload | None:
        """Return an upload even if it has expired."""
        if not is_upload_id(upload_id):
            return None
        record = read_record(self.file(upload_id, RECORD))
        if record is None or record.id != upload_id:
            return None
        try:
            data = self.file(upload_id, DATA).stat()
            used = self.file(upload_id, RECORD).stat().st_mtime
        except FileNotFoundError:
            return None
        if record.media is None:
            return Upload(record, data.st_size, data.st_mtime + self.rules.unfinished_s)
        return Upload(record, data.st_size, used + self.rules.keep_s)

    def fetch(self, upload_id: str, target: Path) -> str | None:
        """Make `target` the content of a finished upload; return its SHA-256 in hex, or None if
        there is none here.

        Raises:
            OSError: it cannot be copied.
        """
        record = self._finished(upload_id)
        if record is None:
            return None
        target.unlink(missing_ok=True)
        data = self.file(upload_id, DATA)
        try:
            os.link(data, target)
        except FileNotFoundError:
            return None
        except OSError:  # another disk, or one without links
            shutil.copyfile(data, target)
        return record.sha256

    def read(self, upload_id: str, offset: int, max_bytes: int) -> UploadPiece | None:
        """Return bytes of a finished upload; None if there is none here."""
        record = self._finished(upload_id)
        if record is None or record.sha256 is None:
            return None
        try:
            with self.file(upload_id, DATA).open("rb") as file:
                file.seek(offset)
                return UploadPiece(record.sha256, record.length or 0, file.read(max_bytes))
        except FileNotFoundError:
            return None

    def _finished(self, upload_id: str) -> Record | None:
        upload = self.find(upload_id)
        return upload.record if upload is not None and upload.is_finished else None


@dataclass(frozen=True, slots=True)
class UploadPiece:
    """Bytes of an upload on their way to another node, with the digest and size of the whole."""

    sha256: str
    size_bytes: int
    data: bytes = field(repr=False)
