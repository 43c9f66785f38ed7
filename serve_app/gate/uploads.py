"""Uploads pass the gate in pieces; the next one is read when the ingress has stored the last.

Serve streams bodies from proxy to replica without back-pressure, so a whole file could gather in
their memory. Here each upload is at most one piece. The gate makes the steps of the tus protocol
(routers/uploads.py) for the client, with the client's own headers, so that the ingress checks its
key for every step:

- a raw `PUT /v1/uploads/{name}`, and a form or a file by `POST /v1/uploads`: creation, pieces,
  completion;
- a `PATCH` of tus, however long: one `PATCH` for each piece;
- a form for a route that takes jobs, or a document with `data:` URLs: the same for each file in it,
  then one JSON document in which `video_url` and `audio_url` name the uploads.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Scope

from orchestrator.job_api.bodies import declared_bytes
from serve_app.gate.asgi import Headers, WholeAnswer, call, header
from serve_app.gate.callers import route_path
from serve_app.gate.file_pieces import Unanswered
from serve_app.gate.forms import (
    FormInvalid,
    PartBegin,
    PartData,
    PartEnd,
    is_form,
    part_events,
)
from serve_app.gate.forwarding import is_serves_own
from serve_app.gate.inline_files import MARK, may_be_inline, take_out
from serve_app.gate.upload_body import UploadBody, UploadLimits

UPLOADS = "/v1/uploads"
# Routes that take the video and the audio of a job as files of a form.
JOB_FORMS = frozenset(
    {"/generate", "/v1/avatar/jobs", "/v1/avatar/preview", "/v1/avatars", "/v1/estimate"}
)
JSON_FIELDS = frozenset({"params", "metadata"})
MAX_ANSWER_BYTES = 64 * 1024
_PIECES = re.compile(rf"{UPLOADS}/[^/]+")
# Headers of the client's request that concern its own body or the protocol of uploads.
_OURS = re.compile(
    rb"content-(type|length|encoding|disposition)|transfer-encoding|expect|upload-.*|tus-.*"
    rb"|x-http-method-override|idempotency-key"
)


class TooManyWriters(Exception):
    """The largest number of clients upload, and none of them has finished in time."""


class DocumentTooLarge(Exception):
    """A document is too large, and not because of the files in it."""


@dataclass(frozen=True, slots=True)
class JobDocument:
    """The JSON document that stands for a form, and the scope of the request that carries it."""

    scope: Scope
    body: bytes


class _Refused(Exception):
    """The ingress refuses a step. The client gets the answer of the ingress."""

    def __init__(self, answer: WholeAnswer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def takes(scope: Scope, max_bytes: int) -> bool:
    """Whether a request is an upload, or a job whose files come with it. `max_bytes`: of a body
    without files.
    """
    path, method = route_path(scope), scope["method"]
    if method == "POST" and path in JOB_FORMS and may_be_inline(scope, max_bytes):
        return True
    if _PIECES.fullmatch(path):
        return method in ("PUT", "PATCH")
    if path.rstrip("/") == UPLOADS:
        return method == "PUT" or (method == "POST" and (is_form(scope) or _is_raw(scope)))
    return method == "POST" and path in JOB_FORMS and is_form(scope)


def _is_raw(scope: Scope) -> bool:
    """Whether the body of a `POST` is declared as a file."""
    kind = header(scope["headers"], b"content-type") or b""
    return kind.lower().startswith((b"video/", b"audio/", b"image/", b"application/octet-stream"))


def has_files_inside(scope: Scope, body: bytes) -> bool:
    """Whether a small body may have files in it, as `data:` URLs."""
    return scope["method"] == "POST" and route_path(scope) in JOB_FORMS and MARK in body


class Uploads:
    """Takes uploads, a limited number at once."""

    def __init__(self, app: ASGIApp, limits: UploadLimits) -> None:
        self._app, self._limits = app, limits
        self._places = asyncio.Semaphore(limits.writers)
        self._documents = asyncio.Semaphore(limits.documents)

    async def take(self, scope: Scope, body: UploadBody) -> WholeAnswer | JobDocument:
        """Store what a request uploads; return its answer, or the job that it asks for.

        Raises:
            TooManyWriters: there was no place; nothing has been read.
            FormInvalid, DocumentTooLarge, BodyTooSlow, ClientGone: because of the client; nothing
                is kept, except the pieces of a `PATCH`.
            Unanswered: the ingress gave no answer.
        """
        try:
            async with asyncio.timeout(self._limits.place_s):
                await self._places.acquire()
        except TimeoutError:
            raise TooManyWriters from None
        try:
            return await self._take(_Steps(self._app, scope, self._limits), body)
        except _Refused as refused:
            return refused.answer
        finally:
            self._places.release()

    async def _take(self, steps: _Steps, body: UploadBody) -> WholeAnswer | JobDocument:
        scope = steps.scope
        if scope["method"] == "PATCH":
            return await steps.add_all(body)
        if scope["method"] == "PUT" or _is_raw(scope):
            name = unquote(route_path(scope).removeprefix(UPLOADS).strip("/"))
            async with steps.upload(name, declared_bytes(scope)) as sink:
                async with contextlib.aclosing(body.chunks()) as chunks:
                    async for data in chunks:
                        await sink.write(data)
                return await sink.complete()
        is_job = route_path(scope) in JOB_FORMS
        if not is_form(scope):
            async with self._documents:
                return await self._take_inline(steps, await body.whole())
        form = _Form(steps, self._limits, ("video", "audio") if is_job else ("file",))
        async with contextlib.aclosing(body.chunks()) as chunks:
            events = part_events(scope, chunks, self._limits.parts)
            async with contextlib.aclosing(events):
                await form.read(events)
        return form.job() if is_job else form.upload()

    async def _take_inline(self, steps: _Steps, whole: bytes) -> WholeAnswer | JobDocument:
        """Store the files in a document, and return what is left of it."""
        inline = await asyncio.to_thread(take_out, whole)
        if inline is None:
            if len(whole) > self._limits.fields_bytes:
                raise DocumentTooLarge
            return JobDocument(steps.scope, whole)
        document = dict(inline.document)
        for name, content in inline.files.items():
            async with steps.upload(name.removesuffix("_url")) as sink:
                await sink.write(content)
                document[name] = _url_of(await sink.complete())
        return steps.job(document)


class _Form:
    """Reads one form: files go into uploads, fields are kept."""

    def __init__(self, steps: _Steps, limits: UploadLimits, files: tuple[str, ...]) -> None:
        self._steps, self._limits, self._files = steps, limits, files
        self._stored: dict[str, WholeAnswer] = {}
        self._fields: dict[str, bytearray] = {}
        self._field_bytes = 0

    async def read(self, events: AsyncIterator[Any]) -> None:
        """Read the form to its end."""
        async for event in events:
            assert isinstance(event, PartBegin)
            if event.name in self._stored or event.name in self._fields:
                raise FormInvalid(f"The form has two parts with the name `{event.name}`.")
            if event.file_name is None:
                await self._read_field(event.name, events)
            elif event.name in self._files:
                await self._read_file(event.name, event.file_name, events)
            else:
                names = " and ".join(f"`{name}`" for name in self._files)
                raise FormInvalid(f"A file of the form is not in {names}.")

    async def _read_file(self, name: str, file_name: str, events: AsyncIterator[Any]) -> None:
        async with self._steps.upload(file_name) as sink:
            async for event in events:
                if isinstance(event, PartEnd):
                    self._stored[name] = await sink.complete()
                    return
                assert isinstance(event, PartData)
                await sink.write(event.data)

    async def _read_field(self, name: str, events: AsyncIterator[Any]) -> None:
        value = self._fields[name] = bytearray()
        async for event in events:
            if isinstance(event, PartEnd):
                return
            assert isinstance(event, PartData)
            self._field_bytes += len(event.data)
            if self._field_bytes > self._limits.fields_bytes:
                raise FormInvalid("The fields of the form are too large.")
            value += event.data

    def upload(self) -> WholeAnswer:
        """Return the answer to a form that uploads a file."""
        if "file" not in self._stored:
            raise FormInvalid("The form has no file in the field `file`.")
        return self._stored["file"]

    def job(self) -> JobDocument:
        """Return the job that a form asks for."""
        document: dict[str, Any] = {name: _read(name, raw) for name, raw in self._fields.items()}
        for name, answer in self._stored.items():
            if f"{name}_url" in document:
                raise FormInvalid(f"Send `{name}` or `{name}_url`, not both.")
            document[f"{name}_url"] = _url_of(answer)
        return self._steps.job(document)


def _url_of(answer: WholeAnswer) -> str:
    """Return the address of an upload that is complete."""
    return str(json.loads(answer.body)["url"])


_OF_BODY = (b"content-type", b"content-length", b"transfer-encoding", b"expect")


def _read(name: str, raw: bytearray) -> Any:
    """Return the value of a field: text, or what its JSON says."""
    try:
        text = raw.decode()
        return json.loads(text) if name in JSON_FIELDS else text
    except (ValueError, RecursionError):
        what = "JSON" if name in JSON_FIELDS else "UTF-8"
        raise FormInvalid(f"The field `{name}` is not {what}.") from None


@dataclass
class _Sink:
    """One upload that this gate makes for a client."""

    steps: _Steps
    path: str
    offset: int = 0
    pending: bytearray = field(default_factory=bytearray)

    async def write(self, data: bytes) -> None:
        """Add bytes; those of a whole piece are sent at once."""
        self.pending += data
        size = self.steps.limits.piece_bytes
        while len(self.pending) >= size:
            await self._send(bytes(self.pending[:size]))
            del self.pending[:size]

    async def complete(self) -> WholeAnswer:
        """Send the rest, and return what the file was found to be."""
        if self.pending:
            await self._send(bytes(self.pending))
        return await self.steps.do("POST", f"{self.path}/complete", 201)

    async def _send(self, data: bytes) -> None:
        await self.steps.add(self.path, self.offset, data)
        self.offset += len(data)


class _Steps:
    """Makes the steps of uploads at the ingress, in the name of one client's request."""

    def __init__(self, app: ASGIApp, scope: Scope, limits: UploadLimits) -> None:
        self._app, self.scope, self.limits = app, scope, limits
        self._headers: Headers = [
            (bytes(key), bytes(value))
            for key, value in scope["headers"]
            if _OURS.fullmatch(bytes(key).lower()) is None
        ]

    @contextlib.asynccontextmanager
    async def upload(self, name: str, at_most: int | None = None) -> AsyncIterator[_Sink]:
        """Begin an upload of `at_most` so many bytes, and remove it if the block raises."""
        encoded = base64.b64encode(name[:200].encode("utf-8", "replace"))
        headers = [_TUS, _DEFERRED, (b"upload-metadata", b"filename " + encoded)]
        if at_most is not None:
            headers.append((b"upload-at-most", b"%d" % at_most))
        answer = await self.do("POST", UPLOADS, 201, headers)
        location = (answer.header(b"location") or b"").decode("latin-1")
        path = f"{UPLOADS}/{location.rpartition('/')[2]}"
        try:
            yield _Sink(self, path)
        except BaseException:
            with contextlib.suppress(Unanswered, _Refused):
                await asyncio.shield(self.do("DELETE", path, 204))
            raise

    def job(self, document: dict[str, Any]) -> JobDocument:
        """Return the client's request with a document for its body."""
        body = json.dumps(document).encode()
        if len(body) > self.limits.fields_bytes:
            raise DocumentTooLarge
        kept = [pair for pair in self.scope["headers"] if pair[0].lower() not in _OF_BODY]
        kind = (b"content-type", b"application/json")
        headers = [*kept, kind, (b"content-length", b"%d" % len(body))]
        return JobDocument({**self.scope, "headers": headers}, body)

    async def add_all(self, body: UploadBody) -> WholeAnswer:
        """Add the body of the client's own `PATCH`; return the last answer."""
        asked = self.scope["headers"]
        path, text = route_path(self.scope), header(asked, b"upload-offset") or b""
        kind = header(asked, b"content-type") or b""
        version = header(asked, b"tus-resumable") or b""
        ours = [(b"content-type", kind), (b"tus-resumable", version)]
        offset = int(text) if text.isdigit() and len(text) < 16 else None
        answer = None
        async with contextlib.aclosing(body.pieces()) as pieces:
            async for piece in pieces:
                at = text if offset is None else b"%d" % offset
                headers = [*ours, (b"upload-offset", at)]
                answer = await self.do("PATCH", path, 204, headers, piece)
                offset = (offset or 0) + len(piece)
        assert answer is not None, "there is at least one piece"
        return answer

    async def add(self, path: str, offset: int, data: bytes) -> None:
        """Add a piece to an upload that this gate has begun."""
        at = (b"upload-offset", b"%d" % offset)
        await self.do("PATCH", path, 204, [_TUS, _PIECE_TYPE, at], data)

    async def do(
        self,
        method: str,
        path: str,
        expected: int,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> WholeAnswer:
        """Make one step.

        Raises:
            _Refused: the ingress answers with another status than `expected`.
            Unanswered: it does not answer.
        """
        whole = str(self.scope["path"]).removesuffix(route_path(self.scope)) + path
        length = (b"content-length", b"%d" % len(body))
        own = {
            **self.scope,
            "method": method,
            "path": whole,
            "raw_path": whole.encode(),
            "query_string": b"",
            "headers": [*self._headers, *headers, *([length] if body else [])],
        }
        try:
            async with asyncio.timeout(self.limits.answer_s):
                answer = await call(self._app, own, MAX_ANSWER_BYTES, body)
        except TimeoutError:
            raise Unanswered from None
        if is_serves_own(answer.status, answer.headers):
            raise Unanswered
        if answer.status != expected:
            raise _Refused(answer)
        return answer


_TUS = (b"tus-resumable", b"1.0.0")
_PIECE_TYPE = (b"content-type", b"application/offset+octet-stream")
_DEFERRED = (b"upload-defer-length", b"1")
