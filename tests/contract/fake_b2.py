"""A small Backblaze B2 on a loopback port: the native API's JSON over real HTTP, with faults.

It checks what the service checks (tokens, lengths, SHA-1, the parts of a large file) and answers
with the service's codes. Faults are queued by call name and used up in order.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

KEY_ID = "0051234567890ab0000000001"
APP_KEY = "K005aVerySecretApplicationKey01"
BUCKET = "clips"
PART_BYTES = 100_000
MIN_PART_BYTES = 5_000

Fault = Callable[["Handler", bytes], None]


class RefusedError(Exception):
    """An error answer of the service."""

    def __init__(self, status: int, code: str, message: str = "", **headers: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.headers = status, code, message, headers


@dataclass
class LargeFile:
    name: str
    content_type: str
    info: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Stored:
    content: bytes
    content_type: str
    is_large: bool
    file_id: str = ""
    uploaded_ms: int = 1


class FakeB2(ThreadingHTTPServer):
    """The state of the service, and the server itself."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)
        self.capabilities = ["listBuckets", "listFiles", "readFiles", "writeFiles"]
        self.name_prefix: str | None = None
        self.download_url = "https://f005.example.com"
        self.tokens: set[str] = set()
        self.all_tokens: set[str] = set()
        self.files: dict[str, Stored] = {}
        self.older: list[tuple[str, Stored]] = []  # versions that a newer one hides, newest first
        self.now_ms = 1
        self.unfinished: dict[str, LargeFile] = {}
        self.calls: list[str] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.released = threading.Event()  # lets go of every fault that holds a connection
        self.connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    def new_token(self) -> str:
        token = f"t0ken-{next(self.numbers)}-{hashlib.sha1(b'salt').hexdigest()}"
        self.tokens.add(token)
        self.all_tokens.add(token)
        return token

    def store(self, name: str, content: bytes, kind: str, file_id: str, *, is_large: bool) -> None:
        """Store a new version of a file."""
        if name in self.files:
            self.older.insert(0, (name, self.files[name]))
        self.files[name] = Stored(content, kind, is_large, file_id, self.now_ms)

    def count(self, call: str) -> int:
        return self.calls.count(call)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeB2

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def do_POST(self) -> None:
        call = self.path.rpartition("/")[2].partition("?")[0]
        with self.server.lock:
            self.server.calls.append(call)
            faults = self.server.faults[call]
            fault = faults.pop(0) if faults else None
        try:
            if fault is not None:
                fault(self, b"")
                return
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with self.server.lock:
                answer = getattr(self, call)(body)
        except RefusedError as refused:
            self.refuse(refused)
            return
        self.answer(200, answer)

    def do_HEAD(self) -> None:
        """Tell of a file by its name, below the download address."""
        name = unquote(self.path).removeprefix(f"/file/{BUCKET}/")
        with self.server.lock:
            self.server.calls.append("head_file")
            faults = self.server.faults["head_file"]
            fault = faults.pop(0) if faults else None
            stored = self.server.files.get(name)
        if fault is not None:
            fault(self, b"")
            return
        self.send_response(404 if stored is None else 200)
        if stored is not None:
            self.send_header("Content-Type", stored.content_type)
            self.send_header("Content-Length", str(len(stored.content)))
            self.send_header("X-Bz-File-Id", "id-of-" + name)
            self.send_header("X-Bz-File-Name", quote(name))
            self.send_header("X-Bz-Content-Sha1", hashlib.sha1(stored.content).hexdigest())
            self.send_header("X-Bz-Upload-Timestamp", "1700000000000")
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        """Send a file by its name, below the download address."""
        name = unquote(self.path).removeprefix(f"/file/{BUCKET}/")
        with self.server.lock:
            self.server.calls.append("download_file")
            faults = self.server.faults["download_file"]
            fault = faults.pop(0) if faults else None
            stored = self.server.files.get(name)
            is_known = self.headers["Authorization"] in self.server.tokens
        if fault is not None:
            fault(self, b"")
        elif not is_known:
            self.refuse(RefusedError(401, "unauthorized"))
        elif stored is None:
            self.refuse(RefusedError(404, "not_found"))
        else:
            self._send_file(name, stored)

    def _send_file(self, name: str, stored: Stored) -> None:
        self.send_response(200)
        self.send_header("Content-Type", stored.content_type)
        self.send_header("Content-Length", str(len(stored.content)))
        self.send_header("X-Bz-File-Id", "id-of-" + name)
        self.send_header("X-Bz-File-Name", quote(name))
        sha1 = "none" if stored.is_large else hashlib.sha1(stored.content).hexdigest()
        self.send_header("X-Bz-Content-Sha1", sha1)
        self.send_header("X-Bz-Upload-Timestamp", "1700000000000")
        self.end_headers()
        self.wfile.write(stored.content)

    def refuse(self, refused: RefusedError) -> None:
        document = {
            "status": refused.status,
            "code": refused.code,
            "message": refused.message or refused.code,
        }
        self.answer(refused.status, document, **refused.headers)

    def answer(self, status: int, document: object, **headers: str) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status != 200:  # the body of the request may be unread
            self.send_header("Connection", "close")
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    # --- the calls --------------------------------------------------------------------------------

    def b2_authorize_account(self, body: bytes) -> dict[str, Any]:
        expected = base64.b64encode(f"{KEY_ID}:{APP_KEY}".encode()).decode()
        if self.headers["Authorization"] != f"Basic {expected}":
            raise RefusedError(401, "unauthorized")
        storage = {
            "apiUrl": self.server.url,
            "downloadUrl": self.server.download_url,
            "s3ApiUrl": "https://s3.example.com",
            "absoluteMinimumPartSize": MIN_PART_BYTES,
            "recommendedPartSize": PART_BYTES,
            "allowed": {
                "buckets": None,
                "capabilities": self.server.capabilities,
                "namePrefix": self.server.name_prefix,
            },
        }
        return {
            "accountId": "account",
            "authorizationToken": self.server.new_token(),
            "apiInfo": {"storageApi": storage},
        }

    def b2_list_buckets(self, body: bytes) -> dict[str, Any]:
        request = self._authorised(body)
        if request.get("bucketName") != BUCKET:
            return {"buckets": []}
        bucket = {
            "accountId": "account",
            "bucketId": "bucket-id",
            "bucketName": BUCKET,
            "bucketType": "allPublic",
            "bucketInfo": {},
            "corsRules": [],
            "lifecycleRules": [],
            "options": [],
            "revision": 1,
            "defaultServerSideEncryption": {
                "isClientAuthorizedToRead": True,
                "value": {"algorithm": None, "mode": None},
            },
            "fileLockConfiguration": {"isClientAuthorizedToRead": False, "value": None},
        }
        return {"buckets": [bucket]}

    def b2_list_file_names(self, body: bytes) -> dict[str, Any]:
        request = self._authorised(body)
        if "listFiles" not in self.server.capabilities:
            raise RefusedError(401, "unauthorized")
        prefix, most = request.get("prefix") or "", request.get("maxFileCount") or 100
        start = request.get("startFileName") or ""
        names = sorted(n for n in self.server.files if n.startswith(prefix) and n >= start)
        files = [self._version(name, self.server.files[name]) for name in names[:most]]
        return {"files": files, "nextFileName": names[most] if len(names) > most else None}

    def b2_list_file_versions(self, body: bytes) -> dict[str, Any]:
        request = self._authorised(body)
        if "listFiles" not in self.server.capabilities:
            raise RefusedError(401, "unauthorized")
        prefix, most = request.get("prefix") or "", request.get("maxFileCount") or 100
        start, start_id = request.get("startFileName") or "", request.get("startFileId")
        versions = [*self.server.files.items(), *self.server.older]
        versions = sorted((v for v in versions if v[0].startswith(prefix)), key=lambda v: v[0])
        files = [self._version(*version) for version in versions if version[0] >= start]
        while start_id and files and files[0]["fileId"] != start_id:
            files.pop(0)
        after = files[most] if len(files) > most else {"fileName": None, "fileId": None}
        return {
            "files": files[:most],
            "nextFileName": after["fileName"],
            "nextFileId": after["fileId"],
        }

    def _version(self, name: str, stored: Stored) -> dict[str, Any]:
        file_id = stored.file_id or "id-of-" + name
        found = self._file(file_id, name, len(stored.content), "none")
        return found | {"uploadTimestamp": stored.uploaded_ms}

    def b2_delete_file_version(self, body: bytes) -> dict[str, Any]:
        request = self._authorised(body)
        if "deleteFiles" not in self.server.capabilities:
            raise RefusedError(401, "unauthorized")
        name, file_id = request["fileName"], request["fileId"]
        older = [version for version in self.server.older if version[1].file_id == file_id]
        newest = self.server.files.get(name)
        if older:
            self.server.older.remove(older[0])
        elif newest is not None and file_id in (newest.file_id, "id-of-" + name):
            del self.server.files[name]  # tests delete no newest version of several
        else:
            raise RefusedError(400, "file_not_present")
        return {"fileId": request["fileId"], "fileName": request["fileName"]}

    def b2_get_upload_url(self, body: bytes) -> dict[str, Any]:
        self._authorised(body)
        number = next(self.server.numbers)
        return {
            "bucketId": "bucket-id",
            "uploadUrl": f"{self.server.url}/up/{number}/upload_file",
            "authorizationToken": self.server.new_token(),
        }

    def upload_file(self, body: bytes) -> dict[str, Any]:
        self._check_token()
        sha1 = self._check_sha1(body)
        name = unquote(self.headers["X-Bz-File-Name"])
        file_id = f"id-{next(self.server.numbers)}"
        self.server.store(name, body, self.headers["Content-Type"], file_id, is_large=False)
        uploaded = {"uploadTimestamp": self.server.now_ms}
        return self._file(file_id, name, len(body), sha1) | uploaded

    def b2_start_large_file(self, body: bytes) -> dict[str, Any]:
        request = self._authorised(body)
        file_id = f"large-{next(self.server.numbers)}"
        large = LargeFile(request["fileName"], request["contentType"], request["fileInfo"])
        self.server.unfinished[file_id] = large
        return self._file(file_id, large.name, 0, "none", large)

    def b2_get_upload_part_url(self, body: bytes) -> dict[str, Any]:
        file_id = self._authorised(body)["fileId"]
        number = next(self.server.numbers)
        return {
            "fileId": file_id,
            "uploadUrl": f"{self.server.url}/up/{number}/{file_id}/upload_part",
            "authorizationToken": self.server.new_token(),
        }

    def upload_part(self, body: bytes) -> dict[str, Any]:
        self._check_token()
        sha1 = self._check_sha1(body)
        file_id = self.path.split("/")[-2]
        number = int(self.headers["X-Bz-Part-Number"])
        self._large(file_id).parts[number] = body
        return {
            "fileId": file_id,
            "partNumber": number,
            "contentLength": len(body),
            "contentSha1": sha1,
        }

    def b2_finish_large_file(self, body: bytes) -> dict[str, Any]:
        request = self._authorised(body)
        file_id = request["fileId"]
        large = self._large(file_id)
        parts = [large.parts[number] for number in sorted(large.parts)]
        if [hashlib.sha1(part).hexdigest() for part in parts] != request["partSha1Array"]:
            raise RefusedError(400, "bad_request", "the parts are not those that were sent")
        content = b"".join(parts)
        self.server.store(large.name, content, large.content_type, file_id, is_large=True)
        del self.server.unfinished[file_id]
        return self._file(file_id, large.name, len(content), "none", large)

    def b2_cancel_large_file(self, body: bytes) -> dict[str, Any]:
        file_id = self._authorised(body)["fileId"]
        large = self._large(file_id)
        del self.server.unfinished[file_id]
        return {
            "fileId": file_id,
            "accountId": "account",
            "bucketId": "bucket-id",
            "fileName": large.name,
        }

    def b2_list_unfinished_large_files(self, body: bytes) -> dict[str, Any]:
        prefix = self._authorised(body).get("namePrefix") or ""
        return {
            "files": [
                self._file(file_id, large.name, 0, "none", large)
                for file_id, large in self.server.unfinished.items()
                if large.name.startswith(prefix)
            ],
            "nextFileId": None,
        }

    def b2_list_parts(self, body: bytes) -> dict[str, Any]:
        file_id = self._authorised(body)["fileId"]
        parts = [
            {
                "fileId": file_id,
                "partNumber": number,
                "contentLength": len(part),
                "contentSha1": hashlib.sha1(part).hexdigest(),
            }
            for number, part in sorted(self._large(file_id).parts.items())
        ]
        return {"parts": parts, "nextPartNumber": None}

    # --- what they share --------------------------------------------------------------------------

    def _large(self, file_id: str) -> LargeFile:
        try:
            return self.server.unfinished[file_id]
        except KeyError:
            raise RefusedError(400, "bad_request", "no such large file") from None

    def _check_token(self) -> None:
        if self.headers["Authorization"] not in self.server.tokens:
            raise RefusedError(401, "expired_auth_token", "Authorization token has expired")

    def _authorised(self, body: bytes) -> dict[str, Any]:
        self._check_token()
        document = json.loads(body)
        assert isinstance(document, dict)
        return document

    def _check_sha1(self, body: bytes) -> str:
        sha1 = hashlib.sha1(body).hexdigest()
        if self.headers["X-Bz-Content-Sha1"] != sha1:
            raise RefusedError(400, "bad_request", "Sha1 did not match data received")
        return sha1

    def _file(
        self, file_id: str, name: str, size: int, sha1: str, large: LargeFile | None = None
    ) -> dict[str, Any]:
        return {
            "accountId": "account",
            "action": "upload",
            "bucketId": "bucket-id",
            "contentLength": size,
            "contentSha1": sha1,
            "contentType": large.content_type if large else "video/mp4",
            "fileId": file_id,
            "fileInfo": large.info if large else {},
            "fileName": name,
            "fileRetention": {
                "isClientAuthorizedToRead": True,
                "value": {"mode": None, "retainUntilTimestamp": None},
            },
            "legalHold": {"isClientAuthorizedToRead": True, "value": None},
            "serverSideEncryption": {"algorithm": None, "mode": None},
            "uploadTimestamp": 1,
        }


# --- faults ---------------------------------------------------------------------------------------


def refuse(status: int, code: str, message: str = "", **headers: str) -> Fault:
    """Answer with an error, the body unread."""

    def fault(handler: Handler, _: bytes) -> None:
        handler.refuse(RefusedError(status, code, message, **headers))

    return fault


def expire_tokens(handler: Handler, _: bytes) -> None:
    """Forget every token, then handle the call: it is refused like all that follow."""
    with handler.server.lock:
        handler.server.tokens.clear()
    handler.refuse(RefusedError(401, "expired_auth_token", "Authorization token has expired"))


def cut_off(handler: Handler, _: bytes) -> None:
    """Read half of the body and reset the connection."""
    handler.rfile.read(int(handler.headers["Content-Length"]) // 2)
    _reset(handler)


def cut_off_answer(handler: Handler, _: bytes) -> None:
    """Take the whole body and break off in the middle of the answer."""
    handler.rfile.read(int(handler.headers["Content-Length"]))
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
    _reset(handler)


def hang(handler: Handler, _: bytes) -> None:
    """Take nothing and answer nothing until the test ends."""
    handler.server.released.wait(60)
    handler.close_connection = True


def trickle(handler: Handler, _: bytes) -> None:
    """Answer one byte at a time, for ever: no read ever waits long."""
    handler.rfile.read(int(handler.headers["Content-Length"]))
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not handler.server.released.wait(0.02):
            handler.wfile.write(b" ")
    handler.close_connection = True


def lie_about_sha1(handler: Handler, _: bytes) -> None:
    """Claim to have stored something else."""
    size = len(handler.rfile.read(int(handler.headers["Content-Length"])))
    number = handler.headers.get("X-Bz-Part-Number")
    answer = handler._file("id-lie", "lie", size, "0" * 40)
    handler.answer(200, {**answer, "partNumber": int(number)} if number else answer)


def _reset(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def running() -> Iterator[FakeB2]:
    """Serve until the block ends; every connection is closed by then."""
    server = FakeB2()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        for connection in server.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join(10)
