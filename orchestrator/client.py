"""The worker's half of the orchestrator protocol (contracts.md, section 2).

`OrchestratorHttp` sends one request and turns whatever comes back into an answer or an error type.
`MainClient` and `BufferClient` know the paths and fields of the two worker kinds and share one
interface, `WorkerClient`. A client belongs to the event loop that first used it.

Every call has a total deadline and every answer a size limit: an orchestrator that drips bytes or
never ends its answer costs one call. After any transport fault the connection pool is replaced,
because a pool that has seen a TLS fault may fail every later request.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_core import to_json

from orchestrator.errors import (
    JobGone,
    MalformedAnswer,
    RequestRejected,
    ServiceUnavailable,
)

WorkerType = Literal["main", "transient", "expensive"]
Status = Literal["idle", "busy"]

MAX_ANSWER_BYTES = 1024 * 1024
MAX_DETAIL_CHARS = 300
GONE_STATUSES = frozenset({404, 409, 410})
TRY_AGAIN_STATUSES = frozenset({408, 425, 429})

_JSON = TypeAdapter(dict[str, JsonValue])
_QUERY = re.compile(r"\?[^\s\"'<>]*")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Total deadlines of each call in seconds. Progress: contracts.md; the others are guesses well
    below the 30 s of silence after which a worker counts as offline.
    """

    register_s: float = 5.0
    heartbeat_s: float = 5.0
    claim_s: float = 15.0
    progress_s: float = 5.0
    report_s: float = 15.0


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """Who a worker says it is. `capacity`: jobs at a time under this one identity."""

    worker_id: str
    gpu_class: str
    worker_type: WorkerType = "main"
    provider: str = "unknown"
    capacity: int = 1
    system_info: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that was handed out, as it came.

    `job_id` is what reports are addressed to: `buffer_job_id` for a buffer worker. `payload` is
    not validated beyond having that id; its addresses may be signed, so it stays out of `repr`.
    """

    job_id: str
    payload: Mapping[str, JsonValue] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim. `error`: why the orchestrator has no job for this worker."""

    job: ClaimedJob | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class JobProgress:
    """One best-effort progress report of a running job. `fraction`: 0 to 1."""

    fraction: float
    phase: str
    metrics: Mapping[str, JsonValue] | None = None
    config_label: str | None = None
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A finished job. Refuses to exist without an address and metrics (known fault 2)."""

    output_url: str = field(repr=False)
    metrics: Mapping[str, JsonValue]

    def __post_init__(self) -> None:
        if not self.output_url or not self.metrics:
            raise ValueError("a job without output_url and metrics has not succeeded")


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed job. `error` is the job's own sentence; `fraction` how far it came."""

    error: str
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class FinalReport:
    """The request that ends a job, ready to be stored, sent, and sent again unchanged."""

    job_id: str
    path: str
    body: str = field(repr=False)


class WorkerClient(Protocol):
    """What a worker needs of an orchestrator. Every call raises `OrchestratorError` types."""

    async def register(self) -> None:
        """Introduce the worker. Optional in the protocol: a refusal is no reason to stop."""

    async def heartbeat(
        self, status: Status, current_job_id: str | None, error: str | None
    ) -> None:
        """Say that the worker is alive. Returns only when the orchestrator accepted it."""

    async def claim(self) -> Claim:
        """Ask for one job, once."""

    async def progress(self, job: ClaimedJob, progress: JobProgress) -> None:
        """Report a running job. Raises `JobGone` when it is not this worker's any more."""

    def final_report(
        self,
        job: ClaimedJob,
        end: Succeeded | Failed,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """Build the request that ends a job."""

    async def send_report(self, report: FinalReport) -> None:
        """Send a final report once. Raises `JobGone` when nobody wants it any more."""

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(slots=True)
class _Pool:
    """An `httpx` client and the number of requests in it, so that a replaced one is closed by the
    last of them instead of under their feet.
    """

    client: httpx.AsyncClient
    in_flight: int = 0
    retired: bool = False

    async def close_if_unused(self) -> None:
        if self.retired and self.in_flight == 0:
            await self.client.aclose()


class OrchestratorHttp:
    """POST to an orchestrator, with the key, a deadline, and errors as types.

    `tls`: trust anchors for a private authority; None uses the public ones.
    """

    def __init__(self, base_url: str, api_key: str, *, tls: ssl.SSLContext | None = None) -> None:
        parsed = httpx.URL(checked_base_url(base_url))
        # Apart, because httpx logs the whole address of each request.
        self._login = (parsed.username, parsed.password) if parsed.userinfo else None
        self._base_url = parsed.copy_with(username=None, password=None)
        if not api_key or not api_key.isascii() or not api_key.isprintable():
            # httpx would quote the bad header value in its error.
            raise ValueError("INTERNAL_API_KEY must be one or more visible ASCII characters")
        self._api_key = api_key
        self._tls = tls
        self._pool: _Pool | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_url.host!r})"

    async def post(self, path: str, body: str, *, timeout_s: float) -> bytes:
        """Return the body of a 2xx answer.

        Raises:
            ServiceUnavailable: no answer within `timeout_s`, a transport fault, or a status that
                says "later". Call again.
            RequestRejected: any other status. Calling again cannot help.
        """
        status, answer = await self._exchange(path, body, timeout_s)
        if 200 <= status < 300:
            return answer
        message = f"POST {path} was answered {status}{self._detail(answer)}"
        if status >= 500 or status in TRY_AGAIN_STATUSES:
            raise ServiceUnavailable(message, status_code=status)
        raise RequestRejected(message, status_code=status)

    async def aclose(self) -> None:
        """Close the pool; a request made afterwards opens a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.retired = True
            await pool.close_if_unused()

    async def _exchange(self, path: str, body: str, timeout_s: float) -> tuple[int, bytes]:
        try:
            pool = self._pool = self._pool or _Pool(self._new_client())
        except OSError as exc:  # no descriptor left for the certificates' file
            raise ServiceUnavailable(f"POST {path} could not be sent ({self._fault(exc)})") from exc
        pool.in_flight += 1
        try:
            async with (
                asyncio.timeout(timeout_s),
                pool.client.stream("POST", path, content=body.encode()) as response,
            ):
                return response.status_code, await _read_limited(response, path)
        except (httpx.HTTPError, httpx.StreamError, OSError) as exc:
            # TimeoutError is an OSError. TLS faults arrive as httpx's or as bare ssl.SSLError.
            self._retire(pool)
            raise ServiceUnavailable(f"POST {path} got no answer ({self._fault(exc)})") from exc
        finally:
            pool.in_flight -= 1
            await pool.close_if_unused()

    def _retire(self, pool: _Pool) -> None:
        pool.retired = True
        if self._pool is pool:
            self._pool = None

    def _new_client(self) -> httpx.AsyncClient:
        # Kept when the pool is replaced: it holds no connection, and reading the authorities anew
        # would stop the loop for tens of milliseconds at every fault.
        self._tls = self._tls or httpx.create_ssl_context()
        return httpx.AsyncClient(
            base_url=self._base_url,
            auth=self._login,
            headers={
                "X-Internal-API-Key": self._api_key,
                "Content-Type": "application/json",
                "Accept": "application/json",
                # No compression: the answer limit then counts what is held in memory.
                "Accept-Encoding": "identity",
            },
            timeout=None,  # `asyncio.timeout` bounds the whole call
            follow_redirects=False,  # the key must not travel to another host
            verify=self._tls,
        )

    def _fault(self, exc: Exception) -> str:
        text = self.without_secrets(str(exc))
        return f"{type(exc).__name__}: {text}" if text else type(exc).__name__

    def _detail(self, answer: bytes) -> str:
        """Return the explanation of an error answer; FastAPI's `input` may echo signed URLs, so
        only its `loc` and `msg` are taken.
        """
        try:
            detail = _JSON.validate_json(answer).get("detail")
        except ValidationError:
            return ""
        if isinstance(detail, list):
            known = [entry for entry in detail if isinstance(entry, dict)]
            detail = "; ".join(f"{entry.get('loc')}: {entry.get('msg')}" for entry in known)
        if not isinstance(detail, str) or not detail:
            return ""
        return f": {self.without_secrets(detail)}"

    def without_secrets(self, text: str) -> str:
        """Return the orchestrator's text fit for logs: no key, no query strings, not endless."""
        return _QUERY.sub("?…", text.replace(self._api_key, "…"))[:MAX_DETAIL_CHARS]


class MainClient:
    """The protocol of main, transient and expensive workers."""

    def __init__(
        self, http: OrchestratorHttp, profile: WorkerProfile, timeouts: Timeouts | None = None
    ) -> None:
        self._http = http
        self._profile = profile
        self._timeouts = timeouts or Timeouts()

    async def register(self) -> None:
        """See `WorkerClient`."""
        body = {
            "worker_type": self._profile.worker_type,
            "gpu_class": self._profile.gpu_class,
            "provider": self._profile.provider,
            "capacity": self._profile.capacity,
        }
        path = f"/internal/main/workers/{_segment(self._profile.worker_id)}/register"
        await self._http.post(path, _encode(body), timeout_s=self._timeouts.register_s)

    async def heartbeat(
        self, status: Status, current_job_id: str | None, error: str | None
    ) -> None:
        """See `WorkerClient`. A main worker's heartbeat has no place for `error`."""
        body = {
            "status": status,
            "current_job_id": current_job_id,
            "provider": self._profile.provider,
            "gpu_class": self._profile.gpu_class,
            "worker_type": self._profile.worker_type,
            "system_info": dict(self._profile.system_info),
        }
        path = f"/internal/main/workers/{_segment(self._profile.worker_id)}/heartbeat"
        await self._http.post(path, _encode(body), timeout_s=self._timeouts.heartbeat_s)

    async def claim(self) -> Claim:
        """See `WorkerClient`."""
        body = {
            "worker_id": self._profile.worker_id,
            "worker_type": self._profile.worker_type,
            "gpu_class": self._profile.gpu_class,
        }
        answer = await self._http.post(
            "/internal/main/jobs/claim", _encode(body), timeout_s=self._timeouts.claim_s
        )
        return _read_claim(self._http, answer, id_field="musetalk_job_id")

    async def progress(self, job: ClaimedJob, progress: JobProgress) -> None:
        """See `WorkerClient`."""
        body = self._report_body(
            status="running",
            progress=progress.fraction,
            phase=progress.phase,
            metrics=progress.metrics,
            config_label=progress.config_label,
            batch_size=progress.batch_size,
        )
        await _post_about_job(
            self._http, _progress_path(job), body, timeout_s=self._timeouts.progress_s
        )

    def final_report(
        self,
        job: ClaimedJob,
        end: Succeeded | Failed,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """See `WorkerClient`."""
        if isinstance(end, Succeeded):
            body = self._report_body(
                status="succeeded",
                progress=1.0,
                phase="completed",
                metrics=end.metrics,
                output_url=end.output_url,
                config_label=config_label,
                batch_size=batch_size,
            )
        else:
            body = self._report_body(
                status="failed",
                progress=end.fraction,
                phase="failed",
                error=end.error,
                config_label=config_label,
                batch_size=batch_size,
            )
        return FinalReport(job.job_id, _progress_path(job), body)

    async def send_report(self, report: FinalReport) -> None:
        """See `WorkerClient`."""
        await _post_about_job(
            self._http, report.path, report.body, timeout_s=self._timeouts.report_s
        )

    async def aclose(self) -> None:
        """See `WorkerClient`."""
        await self._http.aclose()

    def _report_body(
        self,
        *,
        status: str,
        progress: float,
        phase: str,
        metrics: Mapping[str, JsonValue] | None = None,
        error: str | None = None,
        **optional: JsonValue,
    ) -> str:
        """Return the body of a progress call; the protocol's optional fields only when known."""
        body: dict[str, JsonValue] = {
            "status": status,
            "progress": progress,
            "phase": phase,
            "worker_id": self._profile.worker_id,
            "metrics": None if metrics is None else dict(metrics),
            "error": error,
        }
        body.update({name: value for name, value in optional.items() if value is not None})
        return _encode(body)


class BufferClient:
    """The protocol of buffer workers. It knows no registration and no progress."""

    def __init__(
        self, http: OrchestratorHttp, profile: WorkerProfile, timeouts: Timeouts | None = None
    ) -> None:
        self._http = http
        self._profile = profile
        self._timeouts = timeouts or Timeouts()

    async def register(self) -> None:
        """Do nothing: a buffer worker introduces itself with its first heartbeat."""

    async def heartbeat(
        self, status: Status, current_job_id: str | None, error: str | None
    ) -> None:
        """See `WorkerClient`. A buffer worker's heartbeat has no place for the job."""
        body = {
            "status": status,
            "gpu_class": self._profile.gpu_class,
            "capacity": self._profile.capacity,
            "error": error,
        }
        path = f"/internal/buffer/workers/{_segment(self._profile.worker_id)}/heartbeat"
        await self._http.post(path, _encode(body), timeout_s=self._timeouts.heartbeat_s)

    async def claim(self) -> Claim:
        """See `WorkerClient`."""
        answer = await self._http.post(
            "/internal/buffer/jobs/claim",
            _encode({"worker_id": self._profile.worker_id}),
            timeout_s=self._timeouts.claim_s,
        )
        return _read_claim(self._http, answer, id_field="buffer_job_id")

    async def progress(self, job: ClaimedJob, progress: JobProgress) -> None:
        """Do nothing: only the end of a buffer job is reported."""

    def final_report(
        self,
        job: ClaimedJob,
        end: Succeeded | Failed,
        *,
        config_label: str | None,
        batch_size: int | None,
    ) -> FinalReport:
        """See `WorkerClient`. Buffer reports have no place for label and batch size."""
        succeeded = end if isinstance(end, Succeeded) else None
        body: dict[str, JsonValue] = {
            "status": "succeeded" if succeeded else "failed",
            "error": end.error if isinstance(end, Failed) else None,
            "output_url": succeeded.output_url if succeeded else None,
            "metrics": dict(succeeded.metrics) if succeeded else None,
        }
        path = f"/internal/buffer/jobs/{_segment(job.job_id)}/status"
        return FinalReport(job.job_id, path, _encode(body))

    async def send_report(self, report: FinalReport) -> None:
        """See `WorkerClient`."""
        await _post_about_job(
            self._http, report.path, report.body, timeout_s=self._timeouts.report_s
        )

    async def aclose(self) -> None:
        """See `WorkerClient`."""
        await self._http.aclose()


def checked_base_url(url: str) -> str:
    """Return the address without a closing slash.

    Raises:
        ValueError: not an http(s) address; the message does not repeat it (it may hold a password).
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ValueError("the orchestrator's base URL cannot be read") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("the orchestrator's base URL must start with http:// or https://")
    if parsed.query or parsed.fragment:
        raise ValueError("the orchestrator's base URL must have no query and no fragment")
    return url.rstrip("/")


async def _post_about_job(
    http: OrchestratorHttp, path: str, body: str, *, timeout_s: float
) -> None:
    try:
        await http.post(path, body, timeout_s=timeout_s)
    except RequestRejected as exc:
        if exc.status_code in GONE_STATUSES:
            raise JobGone(exc.message, status_code=exc.status_code) from exc
        raise


def _progress_path(job: ClaimedJob) -> str:
    return f"/internal/jobs/{_segment(job.job_id)}/progress"


def _segment(identifier: str) -> str:
    """Return `identifier` as one path segment. Ids are untrusted: `..` must not climb, and dots
    are not touched by `quote`.
    """
    if set(identifier) <= {"."}:
        return identifier.replace(".", "%2E")
    return quote(identifier, safe="")


def _encode(body: Mapping[str, object]) -> str:
    """Return compact JSON. NaN and infinity, which JSON lacks, become null."""
    return to_json(body, inf_nan_mode="null").decode()


def _read_claim(http: OrchestratorHttp, answer: bytes, *, id_field: str) -> Claim:
    try:
        fields = _ClaimAnswer.model_validate_json(answer)
    except ValidationError as exc:
        # `from None`: the validation error would quote the answer, signed addresses and all.
        kinds = sorted({error["type"] for error in exc.errors(include_input=False)})
        raise MalformedAnswer(f"the answer to a claim cannot be read: {', '.join(kinds)}") from None
    error = http.without_secrets(fields.error) if fields.error else None
    if fields.job is None:
        return Claim(None, error)
    job_id = fields.job.get(id_field)
    if isinstance(job_id, int) and not isinstance(job_id, bool):
        job_id = str(job_id)
    if not isinstance(job_id, str) or not job_id:
        raise MalformedAnswer(f"a claimed job has no usable {id_field}, so nothing can be reported")
    return Claim(ClaimedJob(job_id, fields.job), error)


class _ClaimAnswer(BaseModel):
    """The answer to either claim; fields that a newer orchestrator adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: dict[str, JsonValue] | None
    error: str | None = None


async def _read_limited(response: httpx.Response, path: str) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise MalformedAnswer(
                f"POST {path} was answered with more than {MAX_ANSWER_BYTES} bytes",
                status_code=response.status_code,
            )
        chunks.append(chunk)
    return b"".join(chunks)


__all__ = [
    "BufferClient",
    "Claim",
    "ClaimedJob",
    "Failed",
    "FinalReport",
    "JobProgress",
    "MainClient",
    "OrchestratorHttp",
    "Status",
    "Succeeded",
    "Timeouts",
    "WorkerClient",
    "WorkerProfile",
    "WorkerType",
    "checked_base_url",
]
