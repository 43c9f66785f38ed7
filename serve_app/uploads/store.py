"""The uploads of an ingress, in a folder on its node (folder.py).

An upload grows piece by piece, and is judged by its content when it is complete. An unfinished one
expires `unfinished_s` after its last piece, a finished one `keep_s` after its last use. Only the
key that sent it finds it; to every other one it does not exist.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from musetalk_pipeline.errors import MediaError
from musetalk_pipeline.files import create_private, sync_folder
from musetalk_pipeline.media.kinds import describe_media
from serve_app.uploads.counts import NOT_COUNTED, UploadCounts
from serve_app.uploads.errors import (
    UploadBusy,
    UploadNotFound,
    UploadTooLarge,
    UploadUnfinished,
    WrongOffset,
)
from serve_app.uploads.folder import DATA, RECORD, UploadFolder
from serve_app.uploads.records import Record, Upload, shown_name, write_record
from serve_app.uploads.space import UploadSpace, disk_is_full

logger = logging.getLogger(__name__)

SWEEP_S = 300.0
DESCRIBED_AT_ONCE = 2  # each one runs a process that reads the header


class UploadStore:
    """Keeps uploads. All methods may be called from any thread; they block on the disk."""

    def __init__(
        self, folder: UploadFolder, space: UploadSpace, counts: UploadCounts = NOT_COUNTED
    ) -> None:
        self.folder, self.rules = folder, folder.rules
        self.space = space
        self._counts = counts
        self._describing = threading.Semaphore(DESCRIBED_AT_ONCE)
        self.sweep()

    def start_janitor(self) -> None:
        """Remove what has expired every few minutes, in a thread that ends with the process."""

        def loop() -> None:
            while True:
                time.sleep(SWEEP_S)
                try:
                    self.sweep()
                except Exception:  # the folder may be accessible again in the next round
                    logger.exception("old uploads not removed")

        threading.Thread(target=loop, name="uploads", daemon=True).start()

    # Reading -----------------------------------------------------------------------------------

    def get(self, owner: str, upload_id: str) -> Upload:
        """Return an upload of that owner.

        Raises:
            UploadNotFound: it has none of that id.
        """
        upload = self.folder.find(upload_id)
        if upload is None or not hmac.compare_digest(upload.record.owner, owner):
            raise UploadNotFound
        return upload

    def all_of(self, owner: str) -> list[Upload]:
        """Return the uploads of an owner, the newest first."""
        uploads = [upload for upload in self.folder.all() if upload.record.owner == owner]
        return sorted(uploads, key=lambda upload: upload.record.created, reverse=True)

    def look_at(self, owner: str, upload_id: str) -> Upload:
        """Return an upload of that owner, completed if all of its bytes are there: a crash may have
        come between its last piece and its completion.

        Raises:
            UploadNotFound: it has none of that id.
            InvalidFile, MediaTooLarge: it has just turned out not to be media, and is removed.
        """
        upload = self.get(owner, upload_id)
        if upload.is_finished or upload.offset != upload.record.length:
            return upload
        with contextlib.suppress(UploadBusy):  # its last piece is being completed
            return self.complete(owner, upload_id)
        return upload

    def use(self, owner: str, upload_id: str) -> Upload:
        """Return a finished upload, and keep it for its whole time again.

        Raises:
            UploadNotFound, UploadUnfinished: it cannot be used.
        """
        if not self.look_at(owner, upload_id).is_finished:
            raise UploadUnfinished
        with contextlib.suppress(FileNotFoundError):
            now_ns = int(self.folder.clock() * 1e9)
            os.utime(self.folder.file(upload_id, RECORD), ns=(now_ns, now_ns))
        return self.get(owner, upload_id)

    # Writing -----------------------------------------------------------------------------------

    def create(
        self, owner: str, name: str, length: int | None, *, at_most: int | None = None
    ) -> Upload:
        """Begin an upload; `length` is its size in bytes, None if it is not known yet. `at_most`:
        make room for so many then, if it is known at least that it will not be more.

        Raises:
            UploadTooLarge: files of that length are not accepted.
            UploadsFull: there is no room.
        """
        room = length if length is not None else at_most or 0
        self._check_length(room)
        upload_id = secrets.token_hex(16)
        self.space.take(upload_id, room)
        record = Record(upload_id, owner, shown_name(name), length, self.folder.clock())
        try:
            with _disk_errors():
                create_private(self.folder.file(upload_id, DATA)).close()
                write_record(self.folder.file(upload_id, RECORD), record)
        except BaseException:
            self._remove(upload_id)
            raise
        return self.get(owner, upload_id)

    def append(self, owner: str, upload_id: str, offset: int, data: bytes) -> Upload:
        """Add bytes to an upload at its end, which has to be `offset`.

        Raises:
            UploadNotFound, WrongOffset, UploadBusy, UploadTooLarge, UploadsFull: nothing was added.
        """
        record = self.get(owner, upload_id).record
        with self._locked(upload_id) as descriptor:
            size = os.fstat(descriptor).st_size
            if size != offset or record.media is not None:
                raise WrongOffset(size)
            if record.length is not None and size + len(data) > record.length:
                raise UploadTooLarge(f"The upload was announced with {record.length} bytes.")
            self._check_length(size + len(data))
            if record.length is None:
                self.space.take(upload_id, size + len(data))
            try:
                with _disk_errors():
                    _write_all(descriptor, data, size)
            except BaseException:
                os.ftruncate(descriptor, size)
                raise
        if data:
            self._counts.stored(len(data))
        return self.get(owner, upload_id)

    def complete(self, owner: str, upload_id: str, *, by_content: bool = False) -> Upload:
        """Judge an upload whose bytes have all arrived. One that cannot be used is removed.

        `by_content`: give it an id that follows from its content and owner. If there is such an
        upload already, it stays, and this one is removed.

        Raises:
            UploadNotFound, UploadUnfinished, UploadBusy: it cannot be completed now.
            InvalidFile, MediaTooLarge: it is not media that a job can use.
        """
        upload = self.get(owner, upload_id)
        if upload.is_finished:
            return upload
        record, data = upload.record, self.folder.file(upload_id, DATA)
        if record.length is not None and upload.offset < record.length:
            raise UploadUnfinished
        with self._locked(upload_id) as descriptor, self._describing:
            size = os.fstat(descriptor).st_size
            with data.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            try:
                media = describe_media(data, self.rules.media, digest)
            except MediaError:
                self._remove(upload_id)
                raise
            os.fsync(descriptor)
            found = replace(record, length=size, sha256=digest, media=media)
            kept = self._keep_by_content(found) if by_content else self._keep(found)
        self._counts.finished(media.kind)
        return kept

    def delete(self, owner: str, upload_id: str) -> None:
        """Remove an upload. A job that has begun with it goes on.

        Raises:
            UploadNotFound: that owner has none of that id.
        """
        self.get(owner, upload_id)
        self._remove(upload_id)

    def sweep(self) -> None:
        """Remove what has expired, and what a crash has left without its other half."""
        now, taken, paths = self.folder.clock(), dict[str, int](), list[Path]()
        with contextlib.suppress(FileNotFoundError):  # the folder is gone, and all uploads with it
            paths.extend(self.folder.path.iterdir())
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                upload = self.folder.load(path.stem) if path.suffix in (RECORD, DATA) else None
                if upload is not None and upload.expires > now:
                    taken[upload.record.id] = max(upload.record.length or 0, upload.offset)
                elif upload is not None:
                    self._remove(upload.record.id)
                elif path.lstat().st_mtime < now - self.rules.unfinished_s:
                    path.unlink()
        self.space.set_all(taken)

    # Inside ------------------------------------------------------------------------------------

    def _check_length(self, length: int) -> None:
        limit = self.rules.media.max_bytes
        if length > limit:
            raise UploadTooLarge(f"Files of at most {limit / (1 << 20):g} MB are accepted.")

    def _keep_by_content(self, record: Record) -> Upload:
        # The owner is a secret of this worker, so nobody else can make the id of a known file.
        text = f"{record.owner}\n{record.sha256}".encode()
        upload_id = hashlib.sha256(text).hexdigest()[:32]
        with contextlib.suppress(UploadNotFound, UploadUnfinished):
            known = self.use(record.owner, upload_id)
            self._remove(record.id)
            return known
        self.folder.file(record.id, DATA).replace(self.folder.file(upload_id, DATA))
        kept = self._keep(replace(record, id=upload_id))
        self._remove(record.id)
        self.space.count(upload_id, kept.offset)
        return kept

    def _keep(self, record: Record) -> Upload:
        with _disk_errors():
            write_record(self.folder.file(record.id, RECORD), record)
            sync_folder(self.folder.path)
        return self.get(record.owner, record.id)

    def _remove(self, upload_id: str) -> None:
        for suffix in (RECORD, DATA):
            self.folder.file(upload_id, suffix).unlink(missing_ok=True)
        self.space.give_back(upload_id)

    @contextlib.contextmanager
    def _locked(self, upload_id: str) -> Iterator[int]:
        """Yield the open data of an upload, which no other request writes to meanwhile."""
        try:
            descriptor = os.open(self.folder.file(upload_id, DATA), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UploadNotFound from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield descriptor
        except BlockingIOError:
            raise UploadBusy from None
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_is_full() from exc
        raise
