"""What can be wrong with an upload, as types with the code and the status of their answer."""

from __future__ import annotations

from typing import ClassVar

from serve_app.contract.codes import ErrorCode


class UploadError(Exception):
    """An upload cannot be made, continued or used. The message is a sentence for its sender."""

    code: ClassVar[ErrorCode]
    status_code: ClassVar[int]
    retryable: ClassVar[bool] = False


class UploadNotFound(UploadError):
    """There is no such upload, it has expired, or another key has sent it."""

    code, status_code = "upload_not_found", 404

    def __init__(self) -> None:
        super().__init__("There is no such upload.")


class UploadUnfinished(UploadError):
    """The end of the file has not arrived yet."""

    code, status_code = "upload_unfinished", 409

    def __init__(self) -> None:
        super().__init__("The upload is not finished: a part of the file is missing.")


class WrongOffset(UploadError):
    """A piece begins where the file does not end. `offset`: where it ends, in bytes."""

    code, status_code = "upload_offset", 409

    def __init__(self, offset: int) -> None:
        super().__init__(f"The next byte of this upload is number {offset}.")
        self.offset = offset


class UploadBusy(UploadError):
    """Another request writes to the same upload now."""

    code, status_code, retryable = "upload_busy", 423, True

    def __init__(self) -> None:
        super().__init__("Another request sends a part of this upload at the moment.")


class UploadTooLarge(UploadError):
    """The file has more bytes than were announced, or than are accepted."""

    code, status_code = "media_too_large", 413


class UploadsFull(UploadError):
    """There is no room: the budget, the number of uploads, or the disk."""

    code, status_code, retryable = "uploads_full", 507, True
