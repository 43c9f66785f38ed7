"""A small orchestrator over real sockets that can be told to fail, stall, lie, and come back.

It speaks both worker protocols of docs/protocol.md §2 and is strict: an unknown, missing or wrongly
typed field, a phase that does not fit, a wrong key or path is answered with an error *and* noted in
`violations`, which a test asserts to be empty. Every call is recorded with its time.

    with FakeOrchestrator() as fake:
        fake.add_job(video_url=…, audio_url=…)
        fake.plan("claim", answer(503), lost_answer())   # the next two claims
        …
        fake.wait_until(lambda: fake.jobs["job-1"].status == "succeeded")
        assert fake.violations == []

Jobs have leases as in production: `offline_after_s` of silence of a worker returns its job to the
queue. Everything is guarded by one lock; `jobs` and `calls` may be read at any time.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.ports import reserved_port

Kind = Literal["register", "heartbeat", "claim", "progress", "final", "goodbye"]

GARBAGE = b"\x00this is no TLS record\r\n" * 8


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


WorkerType = Literal["main", "transient", "expensive"]
Status = Literal["idle", "busy"]
Text = Annotated[str, Field(min_length=1)]


class Register(_Strict):
    worker_type: WorkerType
    gpu_class: Text
    provider: Text
    capacity: Annotated[int, Field(ge=1)]


class SystemInfo(_Strict):
    cpu_cores_physical: Annotated[int, Field(ge=1)]
    cpu_cores_logical: Annotated[int, Field(ge=1)]
    cpu_model: Text
    ram_total_gb: Annotated[float, Field(gt=0)]
    ram_available_gb: Annotated[float, Field(gt=0)]
    disk_total_gb: Annotated[float, Field(gt=0)]
    disk_free_gb: Annotated[float, Field(ge=0)]
    download_speed_mbps: float | None


class RunningJob(_Strict):
    musetalk_job_id: Text
    attempt: int | None


class Heartbeat(_Strict):
    status: Status
    current_job_id: str | None
    provider: Text
    gpu_class: Text
    worker_type: WorkerType
    system_info: SystemInfo
    jobs: list[RunningJob]  # docs/protocol.md §9


class Claim(_Strict):
    worker_id: Text
    worker_type: WorkerType
    gpu_class: Text
    # docs/protocol.md §9, for an orchestrator whose heartbeats' answers have §9's fields
    wait_s: Annotated[float, Field(gt=0, le=30)] = 1
    capabilities: dict[str, Any] = {}


class Progress(_Strict):
    status: Literal["running", "succeeded", "failed"]
    progress: Annotated[float, Field(ge=0.0, le=1.0)]
    phase: Literal[
        "preparing",
        "downloading",
        "inference",
        "inferring",
        "encoding",
        "uploading",
        "completed",
        "failed",
    ]
    worker_id: Text
    metrics: dict[str, Any] | None
    error: str | None
    output_url: Text = "absent"
    config_label: Text = "absent"
    batch_size: Annotated[int, Field(ge=1)] = 1
    attempt: int = 0  # docs/protocol.md §9, where the claim had one
    receipt: dict[str, Any] = Field(default_factory=dict)  # docs/protocol.md §9
    failure: dict[str, Any] = {}  # docs/protocol.md §9, where the claim had an attempt

    def fault(self) -> str | None:
        """Say what contradicts the protocol across fields."""
        if self.status == "running":
            return self._running_fault()
        if self.status == "failed":
            return None if self.error and self.phase == "failed" else "failed without its error"
        has_both = "output_url" in self.model_fields_set and self.metrics
        if not has_both or self.error is not None:
            return "phantom success"
        return None if self.phase == "completed" and self.progress == 1.0 else "half a success"

    def _running_fault(self) -> str | None:
        if self.phase in ("completed", "failed") or self.error is not None:
            return f"running in phase {self.phase}"
        if "output_url" in self.model_fields_set:
            return "an output before the end"
        counts = set(self.metrics or {})
        if self.phase == "inferring" and not {"frames_done", "frames_total"} <= counts:
            return "inferring without frame counts"
        return None


class BufferHeartbeat(_Strict):
    status: Status
    gpu_class: Text
    capacity: Annotated[int, Field(ge=1)]
    error: str | None
    jobs: list[RunningJob]  # docs/protocol.md §9


class BufferClaim(_Strict):
    worker_id: Text
    wait_s: Annotated[float, Field(gt=0, le=30)] = 1
    capabilities: dict[str, Any] = {}


class Goodbye(_Strict):
    reason: Text


class BufferStatus(_Strict):
    status: Literal["succeeded", "failed"]
    error: str | None
    output_url: str | None
    metrics: dict[str, Any] | None
    attempt: int = 0
    receipt: dict[str, Any] = Field(default_factory=dict)
    failure: dict[str, Any] = {}

    def fault(self) -> str | None:
        """Say what contradicts the protocol across fields."""
        if self.status == "failed":
            return None if self.error else "failed without its error"
        if not self.output_url or not self.metrics or self.error is not None:
            return "phantom success"
        return None


@dataclass
class Job:
    """One job of the queue. `claims`: times that it was handed out; `accepted`: final reports."""

    id: str
    payload: dict[str, Any]
    status: str = "queued"
    worker_id: str | None = None
    claimed_at: float = 0.0
    claims: int = 0
    requeues: int = 0
    progress: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    output_url: str | None = None
    error: str | None = None
    metrics: dict[str, Any] | None = None


@dataclass(frozen=True)
class Call:
    """One request. `at`: `time.monotonic()`; `status`: what it was answered, None for nothing."""

    kind: Kind
    path: str
    raw: bytes
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    status: int | None


@dataclass(frozen=True)
class Fault:
    """What to do to a call. `is_handled`: the call takes effect although its answer is spoilt."""

    status: int | None = None
    body: bytes = b'{"detail":"told to fail"}'
    stall_s: float = 0.0
    is_cut: bool = False
    is_garbage: bool = False
    is_handled: bool = False
    handled_after_s: float = 0.0


PASS = Fault(status=200, is_handled=True)
"""No fault at all, to space out planned ones."""


def answer(status: int, body: bytes = b'{"detail":"told to fail"}') -> Fault:
    """Answer so, without looking at the request."""
    return Fault(status=status, body=body)


def stall(seconds: float) -> Fault:
    """Say nothing for so long, then close."""
    return Fault(stall_s=seconds)


def close() -> Fault:
    """Close the connection without an answer."""
    return Fault()


def cut_off() -> Fault:
    """Close the connection in the middle of the answer."""
    return Fault(status=200, body=b'{"job": null, "err', is_cut=True)


def garbage() -> Fault:
    """Write bytes into the connection that are neither TLS nor HTTP."""
    return Fault(is_garbage=True)


def lost_answer() -> Fault:
    """Do what is asked, then close without an answer."""
    return Fault(is_handled=True)


def late_answer(seconds: float) -> Fault:
    """Do what is asked, and answer after so long."""
    return Fault(stall_s=seconds, is_handled=True, status=200)


def late_effect(seconds: float) -> Fault:
    """Do what is asked only after so long, whether or not the caller still waits."""
    return Fault(status=200, is_handled=True, handled_after_s=seconds)


@dataclass(frozen=True)
class TlsFiles:
    """A certificate for 127.0.0.1 and the authority that signed it, as PEM files."""

    certificate: Path
    key: Path
    authority: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


class FakeOrchestrator:
    """See the module. `time_scale` of a test is simply a small `offline_after_s`."""

    def __init__(
        self,
        *,
        api_key: str = "test-internal-key",
        offline_after_s: float = 30.0,
        tls: TlsFiles | None = None,
        counts_attempts: bool = False,
    ) -> None:
        self.api_key = api_key
        self.counts_attempts = counts_attempts
        self.heartbeat_answer: dict[str, Any] = {"detail": "ok"}
        self.offline_after_s = offline_after_s
        self.jobs: dict[str, Job] = {}
        self.calls: list[Call] = []
        self.arrived: Counter[Kind] = Counter()  # calls that have come, handled or not
        self.violations: list[str] = []
        self.connections = 0
        self._tls = tls.server_context() if tls else None
        self._scheme = "https" if tls else "http"
        self._queue: deque[str] = deque()
        self._beats: dict[str, float] = {}
        self._plans: dict[Kind, deque[Fault]] = {}
        self._standing: dict[Kind, Fault] = {}
        self._broken_handshakes = 0
        self._changed = threading.Condition(threading.RLock())
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._leaving = threading.Event()
        self._port = 0
        self._reserved = contextlib.ExitStack()

    # Life ------------------------------------------------------------------------------------

    def start(self) -> FakeOrchestrator:
        """Listen on a free loopback port, or on the earlier one after `go_away`."""
        self._leaving.clear()
        if not self._port:
            self._port = self._reserved.enter_context(reserved_port())
        self._server = _Server(("127.0.0.1", self._port), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="fake orchestrator"
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close every connection and wait for every thread."""
        if self._server is None or self._thread is None:
            return
        self._leaving.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None

    go_away = stop
    come_back = start

    def __enter__(self) -> FakeOrchestrator:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._reserved.close()

    @property
    def url(self) -> str:
        """The base address; it stays the same through `go_away` and `come_back`."""
        return f"{self._scheme}://127.0.0.1:{self._port}"

    def drop_connections(self) -> None:
        """Reset every open connection, as a restarting proxy does."""
        if self._server is not None:
            self._server.drop_connections()

    # What it is told -------------------------------------------------------------------------

    def plan(self, kind: Kind, *faults: Fault) -> None:
        """Do these to the next calls of that kind, in order."""
        with self._changed:
            self._plans.setdefault(kind, deque()).extend(faults)

    def always(self, kind: Kind, fault: Fault | None) -> None:
        """Do this to every call of that kind that nothing else is planned for; None: stop it."""
        with self._changed:
            if fault is None:
                self._standing.pop(kind, None)
            else:
                self._standing[kind] = fault

    def break_handshakes(self, count: int) -> None:
        """Answer the next TLS handshakes with bytes that are none."""
        with self._changed:
            self._broken_handshakes = count

    def add_job(self, job_id: str | None = None, **fields: Any) -> str:
        """Queue a job. For a buffer worker, give `buffer_job_id` among the `fields`."""
        with self._changed:
            musetalk_id = job_id or f"job-{len(self.jobs) + 1}"
            payload = {
                "musetalk_job_id": musetalk_id,
                "video_url": "https://media.example/video.mp4?signature=video-secret",
                "audio_url": "https://media.example/audio.wav?signature=audio-secret",
                "aspect_ratio": "9:16",
                "resolution": "720p",
            } | fields
            key = payload.get("buffer_job_id", musetalk_id)
            self.jobs[key] = Job(key, payload)
            self._queue.append(key)
            self._changed.notify_all()
            return str(key)

    def cancel(self, job_id: str) -> None:
        """Cancel a job: progress of it is answered 409 from now on."""
        with self._changed:
            self.jobs[job_id].status = "cancelled"
            if job_id in self._queue:
                self._queue.remove(job_id)

    def hand_out_again(self, job_id: str) -> None:
        """Queue a job a second time whatever its state: the same job twice."""
        with self._changed:
            self._queue.append(job_id)

    def is_queued(self, job_id: str) -> bool:
        """Whether a job waits to be handed out."""
        with self._changed:
            return job_id in self._queue

    # What it saw -----------------------------------------------------------------------------

    def of(self, kind: Kind) -> list[Call]:
        """The calls of that kind so far."""
        with self._changed:
            return [call for call in self.calls if call.kind == kind]

    def is_offline(self, worker_id: str) -> bool:
        """Whether a worker has been silent for too long, or never spoke."""
        with self._changed:
            last = self._beats.get(worker_id, -1e9)
            return time.monotonic() - last > self.offline_after_s

    def wait_until(self, is_true: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until something is so. From a coroutine: `await asyncio.to_thread(…)`."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                if is_true():
                    return
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"nothing came of it within {timeout_s} s")
                # Some conditions hang on time alone.
                self._changed.wait(min(left, 0.02))

    # The protocol ----------------------------------------------------------------------------

    def handle(
        self, path: str, headers: dict[str, str], raw: bytes
    ) -> tuple[Fault | None, int, bytes]:
        """Return what to do to the answer, and the answer itself."""
        with self._changed:
            route, kind, body = self._read(path, raw)
            self.arrived[kind] += 1
            self._changed.notify_all()
            fault = self._next_fault(kind)
        if fault is not None and fault.handled_after_s:
            self._leaving.wait(fault.handled_after_s)
        with self._changed:
            if fault is not None and not fault.is_handled:
                status, text = fault.status, fault.body
            else:
                status, text = self._answer(route, path, headers, raw, body)
            sent = status if fault is None or fault.status is not None else None
            self.calls.append(Call(kind, path, raw, body, headers, time.monotonic(), sent))
            self._changed.notify_all()
            return fault, status or 0, text

    def is_leaving(self, timeout_s: float) -> bool:
        """Wait that long, or less if the orchestrator goes away."""
        return self._leaving.wait(timeout_s)

    def wrapped(self, connection: socket.socket) -> socket.socket:
        """Do the TLS handshake, or spoil it as planned."""
        with self._changed:
            self.connections += 1
            is_broken = self._broken_handshakes > 0
            self._broken_handshakes -= is_broken
        if is_broken:
            connection.sendall(GARBAGE)
            raise ConnectionAbortedError("told to break the handshake")
        if self._tls is None:
            return connection
        return self._tls.wrap_socket(connection, server_side=True)

    def _read(self, path: str, raw: bytes) -> tuple[str, Kind, dict[str, Any]]:
        with contextlib.suppress(ValueError):
            body = json.loads(raw)
            if isinstance(body, dict):
                route = _route(path)
                is_end = route == "progress" and body.get("status") != "running"
                return route, _KINDS.get(route, "final") if not is_end else "final", body
        return "", "final", {}

    def _next_fault(self, kind: Kind) -> Fault | None:
        planned = self._plans.get(kind)
        return planned.popleft() if planned else self._standing.get(kind)

    def _answer(
        self, route: str, path: str, headers: dict[str, str], raw: bytes, body: dict[str, Any]
    ) -> tuple[int, bytes]:
        key = headers.get("x-internal-api-key", "")
        if not hmac.compare_digest(key.encode(), self.api_key.encode()):
            return self._violation(401, "wrong key")
        if route not in _BODIES:
            return self._violation(404, f"no such path: {path}")
        if headers.get("content-type") != "application/json":
            return self._violation(415, "not sent as JSON")
        try:
            parsed = _BODIES[route].model_validate_json(raw)
        except ValidationError as exc:
            return self._violation(422, f"{route}: {exc}")
        fault = parsed.fault() if isinstance(parsed, Progress | BufferStatus) else None
        if fault is not None:
            return self._violation(422, f"{route}: {fault}")
        if ("wait_s" in body or route == "goodbye") and "drain" not in self.heartbeat_answer:
            return self._violation(422, "an addition, sent to an orchestrator without additions")
        return self._act(route, _identifier(path), body)

    def _violation(self, status: int, text: str) -> tuple[int, bytes]:
        self.violations.append(text)
        return status, _json({"detail": text})

    def _act(self, route: str, identifier: str, body: dict[str, Any]) -> tuple[int, bytes]:
        if route in ("heartbeat", "buffer heartbeat"):
            self._beats[identifier] = time.monotonic()
        if route in ("claim", "buffer claim"):
            return 200, _json({"job": self._hand_out(body["worker_id"])})
        if route in ("progress", "buffer status"):
            return self._take_report(identifier, body)
        if route in ("heartbeat", "buffer heartbeat"):
            return 200, _json(self.heartbeat_answer)
        return 200, _json({"detail": "ok"})

    def _hand_out(self, worker_id: str) -> dict[str, Any] | None:
        self._requeue_silent()
        if not self._queue:
            return None
        job = self.jobs[self._queue.popleft()]
        job.status, job.worker_id, job.claimed_at = "running", worker_id, time.monotonic()
        job.claims += 1
        return job.payload | ({"attempt": job.claims} if self.counts_attempts else {})

    def _requeue_silent(self) -> None:
        for job in self.jobs.values():
            if job.status != "running" or job.worker_id is None:
                continue
            last = max(self._beats.get(job.worker_id, 0.0), job.claimed_at)
            if time.monotonic() - last > self.offline_after_s:
                job.status, job.worker_id = "queued", None
                job.requeues += 1
                self._queue.append(job.id)

    def _job(self, job_id: str) -> Job | None:
        """Return a job by its id; progress of a buffer worker names it by its `musetalk_job_id`."""
        same = (each for each in self.jobs.values() if each.payload["musetalk_job_id"] == job_id)
        return self.jobs.get(job_id) or next(same, None)

    def _take_report(self, job_id: str, body: dict[str, Any]) -> tuple[int, bytes]:
        job = self._job(job_id)
        if job is None:
            return 404, _json({"detail": "no such job"})
        if self.counts_attempts and body.get("attempt") != job.claims:
            return 409, _json({"detail": "that attempt is no longer the job's"})
        if job.status != "running" and job.accepted and body == job.accepted[-1]:
            job.accepted.append(body)  # sent again because the answer was lost
            return 200, _json({"detail": "ok"})
        if job.status != "running" or body.get("worker_id", job.worker_id) != job.worker_id:
            return 409, _json({"detail": f"the job is {job.status}, or another worker's"})
        if body["status"] == "running":
            job.progress.append(body)
            return 200, _json({"detail": "ok"})
        job.accepted.append(body)
        job.status, job.error = body["status"], body["error"]
        job.output_url, job.metrics = body.get("output_url"), body["metrics"]
        return 200, _json({"detail": "ok"})


_BODIES: dict[str, type[_Strict]] = {
    "register": Register,
    "heartbeat": Heartbeat,
    "claim": Claim,
    "progress": Progress,
    "buffer heartbeat": BufferHeartbeat,
    "buffer claim": BufferClaim,
    "buffer status": BufferStatus,
    "goodbye": Goodbye,
}
_KINDS: dict[str, Kind] = {
    "register": "register",
    "heartbeat": "heartbeat",
    "claim": "claim",
    "progress": "progress",
    "buffer heartbeat": "heartbeat",
    "buffer claim": "claim",
    "buffer status": "final",
    "goodbye": "goodbye",
}


def _route(path: str) -> str:
    """Return which call of the protocol a path is; empty for none."""
    match path.strip("/").split("/"):
        case ["internal", "main", "workers", _, "register" | "heartbeat" | "goodbye" as call]:
            return call
        case ["internal", "main", "jobs", "claim"]:
            return "claim"
        case ["internal", "jobs", _, "progress"]:
            return "progress"
        case ["internal", "buffer", "workers", _, "heartbeat"]:
            return "buffer heartbeat"
        case ["internal", "buffer", "jobs", "claim"]:
            return "buffer claim"
        case ["internal", "buffer", "jobs", _, "status"]:
            return "buffer status"
    return ""


def _identifier(path: str) -> str:
    """Return the worker's or job's id: the last segment but one."""
    return unquote(path.strip("/").split("/")[-2])


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as in production
    disable_nagle_algorithm = True
    timeout = 60.0
    server: _Server

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        raw = self.rfile.read(length)
        if len(raw) < length:
            self.close_connection = True  # the client was killed in mid-request
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault, status, body = self.server.fake.handle(self.path, headers, raw)
        if fault is not None and self._is_spoilt(fault):
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + (40 if fault and fault.is_cut else 0)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = bool(fault and fault.is_cut)

    def _is_spoilt(self, fault: Fault) -> bool:
        """Stall or write garbage as planned; True if no answer follows."""
        if fault.stall_s and self.server.fake.is_leaving(fault.stall_s):
            return True
        if fault.is_garbage:
            # Below TLS: the next record that the client reads does not authenticate.
            os.write(self.connection.fileno(), GARBAGE)
        return fault.status is None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `calls` is the log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # `server_close` waits for every handler
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], fake: FakeOrchestrator) -> None:
        super().__init__(address, _Handler)
        self.fake = fake
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._is_closed = False

    def server_close(self) -> None:
        """Close every connection, also one that is being accepted, and wait for the handlers."""
        with self._guard:
            self._is_closed = True
        self.drop_connections()
        super().server_close()

    def drop_connections(self) -> None:
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _hold(self, connection: socket.socket) -> None:
        """Note a connection, so that it can be dropped; it is dropped at once if all are."""
        with self._guard:
            self._open.add(connection)
            if self._is_closed:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._tracked(request) as connection:
            if connection is not None:
                with contextlib.suppress(OSError, ValueError):  # the client went, or was made to go
                    self.finish_request(connection, client_address)

    @contextlib.contextmanager
    def _tracked(self, request: socket.socket) -> Iterator[socket.socket | None]:
        request.settimeout(60.0)
        connection: socket.socket | None = None
        self._hold(request)  # before the handshake, which a client may leave unfinished
        try:
            with contextlib.suppress(OSError):
                connection = self.fake.wrapped(request)
            self._hold(connection or request)
            yield connection
        finally:
            for each in {request, connection or request}:
                with self._guard:
                    self._open.discard(each)
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()


def make_tls_files(folder: Path) -> TlsFiles:
    """Make an authority and a certificate for 127.0.0.1, good for a day."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        _certificate(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(authority_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    addresses: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = (
        _certificate(authority_name, server_name, server_key.public_key())
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    files = TlsFiles(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    files.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def _certificate(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
