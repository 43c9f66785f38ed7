"""Uploads by the tus protocol (https://tus.io, version 1.0), which go on where they broke off."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import BinaryIO

from lipsync_client.effects import Answer, Do, Emit, Flow, Request, Send
from lipsync_client.errors import BadAnswer, LipsyncError, Unreachable
from lipsync_client.exchange import Retries, Trying, error_of, exchange, may_pass, supported
from lipsync_client.values import Transfer, Upload, known

UPLOADS = "/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
PIECE_BYTES, LEAST_PIECE_BYTES = 4 << 20, 64 << 10
WITHOUT_UPLOADS = "Name the files by addresses that the server can fetch, or update the server."


def upload_file(path: Path, retries: Retries) -> Flow[Upload]:
    """Upload a file, and emit a `Transfer` after each piece.

    Raises:
        OSError: it cannot be read.
        NotSupported: the server takes no uploads.
        ApiError: it refuses this one; it may be too large, or not a video, a sound or a picture.
    """
    file: BinaryIO = yield Do(lambda: path.open("rb"))
    try:
        size: int = yield Do(lambda: file.seek(0, 2))
        created = yield from supported(
            _create(path.name, size, retries), "uploads", WITHOUT_UPLOADS
        )
        location = _path_of(created)
        yield from _send(file, size, location, retries)
        answer = yield from exchange(Request("GET", location), retries)
        return known(Upload, answer.json())
    finally:
        file.close()


def _create(name: str, size: int, retries: Retries) -> Flow[Answer]:
    """Begin an upload. If this is done twice, the first one expires without a byte."""
    shown = base64.b64encode(name.encode("utf-8", "replace")).decode()
    headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": f"filename {shown}"}
    return (yield from exchange(Request("POST", UPLOADS, headers), retries))


def _path_of(created: Answer) -> str:
    """Return where the upload is. Proxies may have changed all of its address but the id."""
    upload_id = created.headers.get("location", "").rstrip("/").rpartition("/")[2]
    if not upload_id:
        raise BadAnswer("The answer to an upload has no Location.", status=created.status)
    return f"{UPLOADS}/{upload_id}"


def _send(file: BinaryIO, size: int, location: str, retries: Retries) -> Flow[None]:
    offset, piece_bytes, trying = 0, PIECE_BYTES, Trying(retries)
    yield Emit(Transfer(0, size))
    while offset < size:
        piece = yield Do(partial(_read, file, offset, piece_bytes))
        if not piece:
            raise OSError(f"{file.name} has become shorter while it was uploaded.")
        try:
            answer: Answer = yield Send(_piece(location, offset, piece))
        except Unreachable as fault:
            yield from trying.after(fault)
            offset = yield from _offset(location, retries)
            continue
        if answer.is_success:
            offset = _offset_of(answer)
            trying.reached(offset)
            yield Emit(Transfer(offset, size))
        elif answer.status == 413 and piece_bytes > LEAST_PIECE_BYTES:
            piece_bytes //= 2  # a proxy before the server may accept less than the server
        else:
            yield from _go_on_after(error_of(answer), answer.status, trying)
            offset = yield from _offset(location, retries)


def _go_on_after(error: LipsyncError, status: int, trying: Trying) -> Flow[None]:
    # 409: the server has another part of the file than this client believes, and says which.
    if status != 409 and not may_pass(error):
        raise error
    yield from trying.after(error)


def _piece(location: str, offset: int, piece: bytes) -> Request:
    headers = {
        **TUS,
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
    }
    return Request("PATCH", location, headers, content=piece)


def _offset(location: str, retries: Retries) -> Flow[int]:
    """Ask the server how much it has."""
    return _offset_of((yield from exchange(Request("HEAD", location, TUS), retries)))


def _offset_of(answer: Answer) -> int:
    text = answer.headers.get("upload-offset", "")
    if not (text.isascii() and text.isdigit()):
        raise BadAnswer("The answer to a piece has no Upload-Offset.", status=answer.status)
    return int(text)


def _read(file: BinaryIO, offset: int, most: int) -> bytes:
    file.seek(offset)
    return file.read(most)
