"""Uploads: the tus protocol (https://tus.io, version 1.0), and what is told of finished ones.

The gate turns a form and a raw PUT into the same small steps: creation, pieces, completion.
"""

from __future__ import annotations

import base64
import binascii
import re
from email.utils import formatdate
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import JSONResponse, Response

from orchestrator.job_api.described import LOCATION
from serve_app.api.errors import RequestRejected
from serve_app.api.form_bodies import FILE, FILE_FORM, PIECE
from serve_app.api.models.problems import read_problems, sent_problems
from serve_app.api.models.uploads import Upload as UploadBody
from serve_app.api.models.uploads import UploadList
from serve_app.api.security import require_key
from serve_app.api.upload_desk import DeskDep, upload_body
from serve_app.contract.outcomes import invalid_request, rejected
from serve_app.contract.requests import UPLOAD_ID
from serve_app.uploads.records import Upload

TUS_VERSION = "1.0.0"
TUS = {"Tus-Resumable": TUS_VERSION, "Cache-Control": "no-store"}
PIECE_TYPE = "application/offset+octet-stream"
MAX_DIGITS = 19  # of a number of bytes
_FORMS_HINT = (
    "Send multipart/form-data with the file in the field `file`, or begin a resumable upload with "
    "the headers Tus-Resumable and Upload-Length."
)

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], dependencies=[Depends(require_key)])

UploadId = Annotated[str, Path(pattern=f"^{UPLOAD_ID}$")]
Text = Annotated[str | None, Header(max_length=4096)]


def _require_tus(tus_resumable: Text = None) -> None:
    """Check the version of the protocol.

    Raises:
        RequestRejected: it is absent or another one.
    """
    if tus_resumable == TUS_VERSION:
        return
    if tus_resumable is None:
        text = "This is neither a form nor the beginning of a resumable upload."
        raise RequestRejected(rejected(422, "invalid_request", text, hint=_FORMS_HINT))
    text = f"The version of the tus protocol is {TUS_VERSION} here."
    failure = rejected(412, "invalid_request", text, hint=f"Send Tus-Resumable: {TUS_VERSION}.")
    raise RequestRejected(failure, {"Tus-Version": TUS_VERSION})


Tus = Depends(_require_tus)


@router.options("", include_in_schema=False, status_code=204)
async def tus_options(desk: DeskDep) -> Response:
    """Say which parts of the tus protocol are spoken here."""
    headers = {
        **TUS,
        "Tus-Version": TUS_VERSION,
        "Tus-Extension": "creation,creation-defer-length,expiration,termination",
        "Tus-Max-Size": str(desk.store.rules.media.max_bytes),
    }
    return Response(status_code=204, headers=headers)


_MADE = {
    "model": UploadBody,
    "description": "The file is stored. A resumable upload that has begun has no body.",
    "headers": LOCATION,
}
# A file is sent; its space may be taken, or its bytes may belong elsewhere.
_SENT = sent_problems(409, 412, 415, 507)


@router.post(
    "",
    status_code=201,
    summary="Upload a file",
    dependencies=[Tus],
    response_class=Response,
    responses={201: _MADE, **_SENT},
    openapi_extra=FILE_FORM,
)
async def create_upload(
    http: Request,
    desk: DeskDep,
    upload_length: Text = None,
    upload_defer_length: Text = None,
    upload_at_most: Annotated[str | None, Header(include_in_schema=False)] = None,
    upload_metadata: Text = None,
) -> Response:
    """Store a file from a form (field `file`), or begin a resumable upload (tus)."""
    length = None if upload_length is None else _number("Upload-Length", upload_length)
    if (length is None) == (upload_defer_length is None):
        text = "Send either Upload-Length or Upload-Defer-Length: 1."
        raise RequestRejected(invalid_request(text))
    at_most = None if upload_at_most is None else _number("Upload-At-Most", upload_at_most)
    name = _file_name(upload_metadata)
    upload = await desk.do(desk.store.create, name, length, at_most=at_most)
    if length == 0:
        upload = await desk.do(desk.store.complete, upload.record.id)
    location = f"{http.scope['path']}/{upload.record.id}"
    return Response(status_code=201, headers={**_state(upload), "Location": location})


@router.get(
    "",
    summary="List your uploads, the newest first",
    response_model=UploadList,
    responses=read_problems(409),
)
async def list_uploads(desk: DeskDep) -> JSONResponse:
    """Return the uploads of the key that this request carries."""
    uploads = await desk.do(desk.store.all_of)
    return JSONResponse({"uploads": [upload_body(upload) for upload in uploads]})


@router.head("/{upload_id}", include_in_schema=False)
async def upload_state(upload_id: UploadId, desk: DeskDep) -> Response:
    """Return where an unfinished upload goes on."""
    upload = await desk.do(desk.store.get, upload_id)
    return Response(headers=_state(upload))


@router.get(
    "/{upload_id}",
    summary="Get what is known of an upload",
    response_model=UploadBody,
    responses=read_problems(404, 409),
)
async def get_upload(upload_id: UploadId, desk: DeskDep) -> JSONResponse:
    """Return an upload of the key that this request carries. The file itself is not sent back."""
    return _shown(await desk.do(desk.store.look_at, upload_id))


@router.patch(
    "/{upload_id}",
    status_code=204,
    summary="Add to an upload",
    dependencies=[Tus],
    response_class=Response,
    responses={**_SENT, **read_problems(404)},
    openapi_extra=PIECE,
)
async def add_to_upload(
    http: Request,
    upload_id: UploadId,
    desk: DeskDep,
    upload_offset: Text = None,
    content_type: Text = None,
) -> Response:
    """Add the bytes of the body to a resumable upload, which has to end at `Upload-Offset`."""
    if content_type != PIECE_TYPE:
        text = f"The Content-Type of a piece is {PIECE_TYPE}."
        raise RequestRejected(rejected(415, "invalid_request", text, hint=f"Send {PIECE_TYPE}."))
    offset = _number("Upload-Offset", upload_offset)
    upload = await desk.do(desk.store.append, upload_id, offset, await http.body())
    if upload.offset == upload.record.length:
        upload = await desk.do(desk.store.complete, upload_id)
    return Response(status_code=204, headers=_state(upload))


@router.post(
    "/{upload_id}/complete",
    status_code=201,
    summary="End an upload of unknown length",
    response_class=Response,
    responses={201: _MADE, **_SENT, **sent_problems(404)},
)
async def complete_upload(http: Request, upload_id: UploadId, desk: DeskDep) -> JSONResponse:
    """Return the finished upload. Its id follows from its content, so a file that is sent twice is
    kept once.
    """
    upload = await desk.do(desk.store.complete, upload_id, by_content=True)
    prefix = http.scope["path"].removesuffix(f"/{upload_id}/complete")
    return _shown(upload, 201, Location=f"{prefix}/{upload.record.id}")


@router.delete(
    "/{upload_id}",
    status_code=204,
    summary="Delete an upload",
    response_class=Response,
    responses=read_problems(404, 409),
)
async def delete_upload(upload_id: UploadId, desk: DeskDep) -> Response:
    """Remove an upload at once. Jobs that have begun with it go on."""
    await desk.do(desk.store.delete, upload_id)
    return Response(status_code=204, headers=TUS)


@router.put(
    "/{name}",
    status_code=201,
    summary="Upload a file as it is (curl -T)",
    response_class=Response,
    responses={201: _MADE, **_SENT},
    openapi_extra=FILE,
)
async def put_upload(name: str) -> Response:
    """Store the body as a file of that name."""
    # The gate takes such a request apart; another application may have this route without it.
    text = "This application accepts resumable uploads only."
    raise RequestRejected(rejected(422, "invalid_request", text, hint=_FORMS_HINT))


def _shown(upload: Upload, status_code: int = 200, **headers: str) -> JSONResponse:
    return JSONResponse(upload_body(upload), status_code, headers={**_state(upload), **headers})


def _state(upload: Upload) -> dict[str, str]:
    length = upload.record.length
    return {
        **TUS,
        "Upload-Offset": str(upload.offset),
        **({"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}),
        "Upload-Expires": formatdate(upload.expires, usegmt=True),
    }


def _number(name: str, text: str | None) -> int:
    if text is None or not re.fullmatch(rf"\d{{1,{MAX_DIGITS}}}", text):
        raise RequestRejected(invalid_request(f"{name} has to be a number of bytes."))
    return int(text)


def _file_name(metadata: str | None) -> str:
    """Return `filename` of `Upload-Metadata`; empty if it is not there."""
    for pair in (metadata or "").split(","):
        name, _, value = pair.strip().partition(" ")
        if name == "filename":
            try:
                return base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                text = "Upload-Metadata: `filename` is not UTF-8 in base64."
                raise RequestRejected(invalid_request(text)) from None
    return ""
