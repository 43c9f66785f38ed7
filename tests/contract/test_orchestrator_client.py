"""The worker's half of the protocol over real sockets, byte for byte where it is fixed."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orchestrator.client import (
    BufferClient,
    ClaimedJob,
    FailureReport,
    MainClient,
    OrchestratorHttp,
    ProgressReport,
    SuccessReport,
    Timeouts,
    WorkerProfile,
)
from orchestrator.errors import (
    CallRejected,
    JobGone,
    JobUnknown,
    MalformedAnswer,
    OrchestratorError,
    ServiceUnavailable,
)
from tests.contract.fake_orchestrator import (
    FakeOrchestrator,
    Fault,
    Kind,
    TlsFiles,
    answer,
    close,
    cut_off,
    garbage,
    stall,
)

KEY = "test-internal-key"
SYSTEM_INFO: dict[str, Any] = {
    "cpu_cores_physical": 4,
    "cpu_cores_logical": 8,
    "cpu_model": "Test CPU",
    "ram_total_gb": 16.0,
    "ram_available_gb": 9.5,
    "disk_total_gb": 100.0,
    "disk_free_gb": 40.0,
    "download_speed_mbps": None,
}
PROFILE = WorkerProfile(
    "worker-1", "RTX-5060Ti-16GB", "transient", "vast", capacity=1, system_info=SYSTEM_INFO
)
JOB = ClaimedJob("job-1", {"musetalk_job_id": "job-1"})
BUFFER_JOB = ClaimedJob("buf-1", {"buffer_job_id": "buf-1", "musetalk_job_id": "job-1"})


@pytest.fixture
async def http(fake: FakeOrchestrator) -> AsyncIterator[OrchestratorHttp]:
    connection = OrchestratorHttp(fake.url + "/", KEY)
    yield connection
    await connection.aclose()


@pytest.fixture
def main(http: OrchestratorHttp) -> MainClient:
    return MainClient(http, PROFILE)


@pytest.fixture
def buffer(http: OrchestratorHttp) -> BufferClient:
    return BufferClient(http, PROFILE)


def only(fake: FakeOrchestrator) -> tuple[str, str]:
    """Return path and body of the one call there was, which must have broken no rule."""
    assert fake.violations == []
    (call,) = fake.calls
    return call.path, call.raw.decode()


# Each request, byte for byte ---------------------------------------------------------------------


async def test_register_is_byte_exact(fake: FakeOrchestrator, main: MainClient) -> None:
    await main.register()
    assert only(fake) == (
        "/internal/main/workers/worker-1/register",
        '{"worker_type":"transient","gpu_class":"RTX-5060Ti-16GB","provider":"vast","capacity":1}',
    )


async def test_idle_heartbeat_is_byte_exact(fake: FakeOrchestrator, main: MainClient) -> None:
    await main.heartbeat("idle", None, None)
    assert only(fake) == (
        "/internal/main/workers/worker-1/heartbeat",
        '{"status":"idle","current_job_id":null,"provider":"vast","gpu_class":"RTX-5060Ti-16GB",'
        '"worker_type":"transient","system_info":{"cpu_cores_physical":4,"cpu_cores_logical":8,'
        '"cpu_model":"Test CPU","ram_total_gb":16.0,"ram_available_gb":9.5,"disk_total_gb":100.0,'
        '"disk_free_gb":40.0,"download_speed_mbps":null},"jobs":[]}',
    )


async def test_busy_heartbeat_names_the_job(fake: FakeOrchestrator, main: MainClient) -> None:
    await main.heartbeat("busy", "job-1", "an error has no place here")
    body = json.loads(only(fake)[1])
    assert (body["status"], body["current_job_id"]) == ("busy", "job-1")


async def test_claim_is_byte_exact_and_returns_the_job(
    fake: FakeOrchestrator, main: MainClient
) -> None:
    fake.add_job("job-7", resolution="1080p")
    claim = await main.claim()
    assert only(fake) == (
        "/internal/main/jobs/claim",
        '{"worker_id":"worker-1","worker_type":"transient","gpu_class":"RTX-5060Ti-16GB"}',
    )
    assert claim.job is not None
    assert claim.job.job_id == "job-7"
    assert claim.job.payload["resolution"] == "1080p"


async def test_claim_returns_nothing_when_the_queue_is_empty(main: MainClient) -> None:
    claim = await main.claim()
    assert claim.job is None
    assert claim.error is None


async def test_claim_returns_the_orchestrators_reason_for_having_no_job(
    fake: FakeOrchestrator, main: MainClient
) -> None:
    told = {"job": None, "error": f"blocked, see https://x.example/?sig=abc123 {KEY}" + "x" * 9999}
    fake.plan("claim", answer(200, json.dumps(told).encode()))
    claim = await main.claim()
    assert claim.job is None
    assert claim.error is not None
    assert claim.error.startswith("blocked, see https://x.example/?… …x")
    assert len(claim.error) == 300


async def test_progress_is_byte_exact(fake: FakeOrchestrator, main: MainClient) -> None:
    fake.add_job("job-1")
    await main.claim()
    fake.calls.clear()
    counts = {"frames_done": 50, "frames_total": 125}
    await main.progress(JOB, ProgressReport(0.4, "inferring", counts, "default", 8))
    assert only(fake) == (
        "/internal/jobs/job-1/progress",
        '{"status":"running","progress":0.4,"phase":"inferring","worker_id":"worker-1",'
        '"metrics":{"frames_done":50,"frames_total":125},"error":null,"config_label":"default",'
        '"batch_size":8}',
    )


async def test_unknown_optional_fields_are_left_out(
    fake: FakeOrchestrator, main: MainClient
) -> None:
    fake.add_job("job-1")
    await main.claim()
    fake.calls.clear()
    await main.progress(JOB, ProgressReport(0.0, "preparing"))
    assert only(fake)[1] == (
        '{"status":"running","progress":0.0,"phase":"preparing","worker_id":"worker-1",'
        '"metrics":null,"error":null}'
    )


async def test_success_is_byte_exact(fake: FakeOrchestrator, main: MainClient) -> None:
    fake.add_job("job-1")
    await main.claim()
    fake.calls.clear()
    end = SuccessReport(
        "https://files.example/job-1.mp4",
        {"total_time": 3.5, "PEAK_RAM_KB": None},
        receipt={"frames": 250, "usd": None},
    )
    report = main.final_report(JOB, end, config_label="fast", batch_size=None)
    await main.send_report(report)
    assert only(fake) == (
        "/internal/jobs/job-1/progress",
        '{"status":"succeeded","progress":1.0,"phase":"completed","worker_id":"worker-1",'
        '"metrics":{"total_time":3.5,"PEAK_RAM_KB":null},"error":null,'
        '"output_url":"https://files.example/job-1.mp4",'
        '"receipt":{"frames":250,"usd":null},"config_label":"fast"}',
    )
    assert fake.jobs["job-1"].status == "succeeded"


async def test_a_worker_that_keeps_no_count_sends_no_receipt(main: MainClient) -> None:
    end = SuccessReport("https://files.example/job-1.mp4", {"total_time": 3.5})
    report = main.final_report(JOB, end, config_label=None, batch_size=None)
    assert "receipt" not in json.loads(report.body)


async def test_the_report_of_a_failure_has_its_receipt(main: MainClient) -> None:
    end = FailureReport("No face was found.", 0.25, receipt={"frames": 0, "usd": 0.001})
    report = main.final_report(JOB, end, config_label=None, batch_size=None)
    assert json.loads(report.body)["receipt"] == {"frames": 0, "usd": 0.001}


async def test_failure_is_byte_exact(fake: FakeOrchestrator, main: MainClient) -> None:
    fake.add_job("job-1")
    await main.claim()
    fake.calls.clear()
    end = FailureReport("No face was found.", 0.25)
    report = main.final_report(JOB, end, config_label="default", batch_size=4)
    await main.send_report(report)
    assert only(fake) == (
        "/internal/jobs/job-1/progress",
        '{"status":"failed","progress":0.25,"phase":"failed","worker_id":"worker-1",'
        '"metrics":null,"error":"No face was found.","config_label":"default","batch_size":4}',
    )


async def test_buffer_heartbeat_is_byte_exact(fake: FakeOrchestrator, buffer: BufferClient) -> None:
    await buffer.heartbeat("busy", "buf-1", None)
    assert only(fake) == (
        "/internal/buffer/workers/worker-1/heartbeat",
        '{"status":"busy","gpu_class":"RTX-5060Ti-16GB","capacity":1,"error":null,"jobs":[]}',
    )


async def test_buffer_heartbeat_says_why_it_cannot_work(
    fake: FakeOrchestrator, buffer: BufferClient
) -> None:
    await buffer.heartbeat("idle", None, "No replica can take a job.")
    assert json.loads(only(fake)[1])["error"] == "No replica can take a job."


async def test_buffer_claim_is_byte_exact_and_returns_the_buffer_id(
    fake: FakeOrchestrator, buffer: BufferClient
) -> None:
    fake.add_job("job-1", buffer_job_id="buf-1")
    claim = await buffer.claim()
    assert only(fake) == ("/internal/buffer/jobs/claim", '{"worker_id":"worker-1"}')
    assert claim.job is not None
    assert (claim.job.job_id, claim.job.payload["musetalk_job_id"]) == ("buf-1", "job-1")


@pytest.mark.parametrize(
    ("end", "body"),
    [
        (
            SuccessReport("https://files.example/a.mp4", {"total_time": 1.0}),
            '{"status":"succeeded","error":null,"output_url":"https://files.example/a.mp4",'
            '"metrics":{"total_time":1.0}}',
        ),
        (
            SuccessReport("https://files.example/a.mp4", {"total_time": 1.0}, {"frames": 50}),
            '{"status":"succeeded","error":null,"output_url":"https://files.example/a.mp4",'
            '"metrics":{"total_time":1.0},"receipt":{"frames":50}}',
        ),
        (
            FailureReport("No face was found."),
            '{"status":"failed","error":"No face was found.","output_url":null,"metrics":null}',
        ),
        (
            FailureReport("No face was found.", receipt={"frames": 0}),
            '{"status":"failed","error":"No face was found.","output_url":null,"metrics":null,'
            '"receipt":{"frames":0}}',
        ),
    ],
)
async def test_buffer_status_is_byte_exact(
    fake: FakeOrchestrator, buffer: BufferClient, end: SuccessReport | FailureReport, body: str
) -> None:
    fake.add_job("job-1", buffer_job_id="buf-1")
    await buffer.claim()
    fake.calls.clear()
    report = buffer.final_report(BUFFER_JOB, end, config_label="default", batch_size=8)
    await buffer.send_report(report)
    assert only(fake) == ("/internal/buffer/jobs/buf-1/status", body)


async def test_a_buffer_worker_does_not_register(
    fake: FakeOrchestrator, buffer: BufferClient
) -> None:
    await buffer.register()
    assert fake.calls == []


async def test_progress_of_a_buffer_job_is_byte_exact(
    fake: FakeOrchestrator, buffer: BufferClient
) -> None:
    """Mend 1.7: by the id that main workers know the job by, and in their form."""
    fake.add_job("job-1", buffer_job_id="buf-1")
    await buffer.claim()
    fake.calls.clear()
    counts = {"frames_done": 50, "frames_total": 125}
    await buffer.progress(BUFFER_JOB, ProgressReport(0.4, "inferring", counts, "default", 8))
    assert only(fake) == (
        "/internal/jobs/job-1/progress",
        '{"status":"running","progress":0.4,"phase":"inferring","worker_id":"worker-1",'
        '"metrics":{"frames_done":50,"frames_total":125},"error":null,"config_label":"default",'
        '"batch_size":8}',
    )


async def test_the_number_of_an_attempt_comes_back_in_every_report(
    fake: FakeOrchestrator, main: MainClient, buffer: BufferClient
) -> None:
    """docs/protocol.md §9: only where the claim had one."""
    job = ClaimedJob("job-1", {"musetalk_job_id": "job-1", "attempt": 3})
    for client in (main, buffer):
        fake.always("progress", answer(200))
        await client.progress(job, ProgressReport(0.0, "preparing"))
        report = client.final_report(job, FailureReport("x"), config_label=None, batch_size=None)
        assert json.loads(report.body)["attempt"] == 3
        await client.heartbeat("busy", "job-1", None, [job])
        named = json.loads(fake.calls[-1].raw)["jobs"]
        assert named == [{"musetalk_job_id": "job-1", "attempt": 3}]
    assert {json.loads(call.raw)["attempt"] for call in fake.of("progress")} == {3}


@pytest.mark.parametrize(
    ("body", "cancel", "drain"),
    [
        (b'{"detail":"ok"}', set(), False),
        (b'{"cancel":["job-1","job-2"],"drain":true}', {"job-1", "job-2"}, True),
        (b'{"cancel":null,"drain":"yes"}', set(), False),
        (b'{"cancel":[1,null,"a"]}', {"a"}, False),
        (b"<html>", set(), False),
        (b"[]", set(), False),
        (b"", set(), False),
    ],
)
async def test_the_answer_to_a_heartbeat_asks_for_what_can_be_read(
    fake: FakeOrchestrator, main: MainClient, body: bytes, cancel: set[str], drain: bool
) -> None:
    fake.plan("heartbeat", answer(200, body))
    orders = await main.heartbeat("idle", None, None)
    assert (orders.cancel, orders.drain) == (cancel, drain)


async def test_every_request_carries_the_key_as_json(
    fake: FakeOrchestrator, main: MainClient, buffer: BufferClient
) -> None:
    for client in (main, buffer):
        await client.register()
        await client.heartbeat("idle", None, None)
        await client.claim()
    assert fake.violations == []
    for call in fake.calls:
        assert call.headers["x-internal-api-key"] == KEY
        assert call.headers["content-type"] == "application/json"


# Hostile and odd values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job_id", "path"),
    [
        ("a/../../workers/x", "/internal/jobs/a%2F..%2F..%2Fworkers%2Fx/progress"),
        ("..", "/internal/jobs/%2E%2E/progress"),
        ("a?b=c#d", "/internal/jobs/a%3Fb%3Dc%23d/progress"),
        ("größe ü\n", "/internal/jobs/gr%C3%B6%C3%9Fe%20%C3%BC%0A/progress"),
        ("100%25", "/internal/jobs/100%2525/progress"),
    ],
)
async def test_job_ids_stay_one_path_segment(
    fake: FakeOrchestrator, main: MainClient, job_id: str, path: str
) -> None:
    fake.add_job(job_id)
    await main.claim()
    fake.calls.clear()
    job = ClaimedJob(job_id, {})
    await main.progress(job, ProgressReport(0.0, "preparing"))
    assert only(fake)[0] == path
    assert len(fake.jobs[job_id].progress) == 1


async def test_numbers_that_json_lacks_are_sent_as_null(main: MainClient) -> None:
    end = SuccessReport("https://files.example/a.mp4", {"psnr": math.inf, "loss": math.nan})
    report = main.final_report(JOB, end, config_label=None, batch_size=None)
    assert json.loads(report.body)["metrics"] == {"psnr": None, "loss": None}


async def test_numeric_job_ids_are_taken_as_text(fake: FakeOrchestrator, main: MainClient) -> None:
    fake.plan("claim", answer(200, b'{"job": {"musetalk_job_id": 42}}'))
    claim = await main.claim()
    assert claim.job is not None
    assert claim.job.job_id == "42"


@pytest.mark.parametrize("url,metrics", [("", {"a": 1}), ("https://files.example/a", {})])
def test_success_without_output_or_metrics_cannot_be_built(
    url: str, metrics: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="has not succeeded"):
        SuccessReport(url, metrics)


@pytest.mark.parametrize("client", ["main", "buffer"])
@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"{}"), (200, b'{"job":{}}'), (200, b"null"), (200, b'{"job":null}'), (204, b"")],
)
async def test_every_way_of_having_no_job_is_understood(
    fake: FakeOrchestrator, http: OrchestratorHttp, client: str, status: int, body: bytes
) -> None:
    """Mend 1.17: no retry, no error, no job."""
    fake.plan("claim", answer(status, body))
    kind = MainClient if client == "main" else BufferClient
    claim = await kind(http, PROFILE).claim()
    assert (claim.job, claim.error) == (None, None)
    assert len(fake.calls) == 1


async def test_an_error_that_is_no_text_costs_no_job(
    fake: FakeOrchestrator, main: MainClient
) -> None:
    """The job is handed out already: whoever drops it now keeps it from everybody."""
    for error in ("{}", "0", "false", '{"code": 7}'):
        fake.plan(
            "claim", answer(200, b'{"job":{"musetalk_job_id":"j"},"error":%s}' % error.encode())
        )
        claim = await main.claim()
        assert claim.job is not None and claim.job.job_id == "j"
    assert claim.error is not None and "7" in claim.error


# Answers that are none ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>welcome to the hotel wifi</html>",
        b'{"job": ',
        b"[]",
        b'{"job": "job-1"}',
        b'{"job": {"video_url": "https://a.example/v?signature=abc123"}}',
        b'{"job": {"musetalk_job_id": ""}}',
        b'{"job": {"musetalk_job_id": true}}',
        b'\xff\xfe{"job": null}',
        b"[" * 100_000,
        b'{"job": null, "filler": "' + b"x" * (1024 * 1024) + b'"}',
    ],
    ids=range(11),
)
async def test_a_malformed_claim_is_an_error_that_may_be_tried_again(
    fake: FakeOrchestrator, main: MainClient, body: bytes
) -> None:
    fake.plan("claim", answer(200, body))
    with pytest.raises(MalformedAnswer) as caught:
        await main.claim()
    assert caught.value.retryable
    assert "abc123" not in str(caught.value)
    assert (await main.claim()).job is None  # the connection is fit for the next call


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_later_statuses_are_unavailability(
    fake: FakeOrchestrator, main: MainClient, status: int
) -> None:
    fake.plan("heartbeat", answer(status))
    with pytest.raises(ServiceUnavailable) as caught:
        await main.heartbeat("idle", None, None)
    assert caught.value.status_code == status
    assert caught.value.retryable


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 405, 413, 422])
async def test_other_statuses_are_rejections(
    fake: FakeOrchestrator, main: MainClient, status: int
) -> None:
    fake.plan("heartbeat", answer(status))
    with pytest.raises(CallRejected) as caught:
        await main.heartbeat("idle", None, None)
    assert (caught.value.status_code, caught.value.retryable) == (status, False)
    assert len(fake.calls) == 1  # a redirect is not followed: the key would travel with it


@pytest.mark.parametrize(
    ("status", "error"), [(404, JobUnknown), (409, JobGone), (410, JobGone)], ids=[404, 409, 410]
)
@pytest.mark.parametrize("kind", ["progress", "final"])
async def test_jobs_that_are_gone_or_unknown_have_types_of_their_own(
    fake: FakeOrchestrator,
    main: MainClient,
    status: int,
    error: type[OrchestratorError],
    kind: Kind,
) -> None:
    fake.plan(kind, answer(status))
    with pytest.raises(error):
        if kind == "progress":
            await main.progress(JOB, ProgressReport(0.0, "preparing"))
        else:
            report = main.final_report(JOB, FailureReport("x"), config_label=None, batch_size=None)
            await main.send_report(report)


@pytest.mark.parametrize("fault", [stall(30.0), close(), cut_off()], ids=["stall", "close", "cut"])
async def test_transport_faults_are_unavailability_within_the_deadline(
    fake: FakeOrchestrator, http: OrchestratorHttp, main: MainClient, fault: Fault
) -> None:
    fake.plan("claim", fault)
    with pytest.raises(ServiceUnavailable) as caught:
        async with asyncio.timeout(10.0):  # a guard: the call's own deadline is 0.5 s
            await MainClient(http, PROFILE, Timeouts(claim_s=0.5)).claim()
    assert caught.value.status_code is None
    assert (await main.claim()).job is None


async def test_nobody_listening_is_unavailability(fake: FakeOrchestrator, main: MainClient) -> None:
    fake.go_away()
    with pytest.raises(ServiceUnavailable):
        await main.claim()
    fake.come_back()
    assert (await main.claim()).job is None


async def test_connections_are_kept_between_calls(fake: FakeOrchestrator, main: MainClient) -> None:
    for _ in range(5):
        await main.heartbeat("idle", None, None)
    assert fake.connections == 1


async def test_a_cancelled_call_leaves_the_client_usable(
    fake: FakeOrchestrator, main: MainClient
) -> None:
    fake.plan("claim", stall(30.0))
    call = asyncio.create_task(main.claim())
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("claim")) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await main.claim()).job is None


async def test_a_fault_of_one_call_does_not_break_another_under_way(
    fake: FakeOrchestrator, http: OrchestratorHttp
) -> None:
    slow = MainClient(http, PROFILE, Timeouts(heartbeat_s=5.0, claim_s=5.0))
    fake.plan("claim", Fault(stall_s=0.5, is_handled=True, status=200))
    fake.add_job("job-1")
    claim = asyncio.create_task(slow.claim())
    await asyncio.to_thread(fake.wait_until, lambda: len(fake.of("claim")) == 1)
    fake.plan("heartbeat", close())
    with pytest.raises(ServiceUnavailable):
        await slow.heartbeat("idle", None, None)
    claimed = (await claim).job  # were its pool closed under it, the job would be lost
    assert claimed is not None and claimed.job_id == "job-1"


# TLS ---------------------------------------------------------------------------------------------


async def test_tls_faults_are_unavailability_and_the_next_call_works(tls: TlsFiles) -> None:
    with FakeOrchestrator(api_key=KEY, tls=tls) as fake:
        http = OrchestratorHttp(fake.url, KEY, tls=tls.client_context())
        client = MainClient(http, PROFILE, Timeouts())
        await client.heartbeat("idle", None, None)
        for fault in (garbage(), close(), cut_off()):
            fake.plan("claim", fault)
            with pytest.raises(ServiceUnavailable):
                await client.claim()
            await client.heartbeat("idle", None, None)
        fake.drop_connections()
        fake.break_handshakes(1)
        with pytest.raises(ServiceUnavailable):
            await client.heartbeat("idle", None, None)
        await client.heartbeat("idle", None, None)
        await http.aclose()


async def test_an_unknown_authority_is_refused(tls: TlsFiles) -> None:
    with FakeOrchestrator(api_key=KEY, tls=tls) as fake:
        http = OrchestratorHttp(fake.url, KEY)
        with pytest.raises(ServiceUnavailable, match=r"(?i)certificate"):
            await MainClient(http, PROFILE).heartbeat("idle", None, None)
        assert fake.calls == []  # the key was not sent
        await http.aclose()


# Secrets -----------------------------------------------------------------------------------------


async def test_secrets_stay_out_of_errors_logs_and_repr(
    fake: FakeOrchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    address = fake.url.replace("http://", "http://user:base-password@")
    http = OrchestratorHttp(address, KEY)
    client = MainClient(http, PROFILE)
    echo = {
        "detail": [
            {"loc": ["body", "video_url"], "msg": f"bad {KEY}", "input": "https://x/?sig=abc123"},
        ]
    }
    texts = [repr(http), repr(client)]
    for body in (
        json.dumps(echo),
        json.dumps({"detail": f"key {KEY} for https://x.example/v?sig=abc123 refused"}),
        f"plain {KEY} https://x/?sig=abc123",
    ):
        fake.plan("claim", answer(422, body.encode()))
        with pytest.raises(CallRejected) as caught:
            await client.claim()
        texts += [str(caught.value), repr(caught.value)]
    fake.add_job("job-1")
    claim = await client.claim()
    texts.append(repr(claim))
    end = SuccessReport("https://files.example/a.mp4?sig=abc123", {"a": 1})
    texts += [repr(end), repr(client.final_report(JOB, end, config_label=None, batch_size=None))]
    await http.aclose()
    fake.go_away()
    with pytest.raises(OrchestratorError) as unanswered:
        await client.claim()
    texts += [str(unanswered.value), caplog.text]
    for secret in (KEY, "abc123", "base-password", "video-secret"):
        assert not any(secret in text for text in texts), secret


async def test_validation_details_of_the_orchestrator_are_kept(
    fake: FakeOrchestrator, main: MainClient
) -> None:
    body = b'{"detail": [{"loc": ["body", "gpu_class"], "msg": "Field required", "input": {}}]}'
    fake.plan("claim", answer(422, body))
    with pytest.raises(CallRejected, match=r"gpu_class.*Field required"):
        await main.claim()


@pytest.mark.parametrize("key", ["", "two\nlines", "schlüssel", "nul\0"])
def test_keys_that_no_header_can_carry_are_refused_without_echo(key: str) -> None:
    with pytest.raises(ValueError, match="INTERNAL_API_KEY") as caught:
        OrchestratorHttp("http://127.0.0.1:1", key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "orchestrator:8000",
        "ftp://a.example",
        "http://",
        "http://a.example/?key=abc123",
        "http://[::1",
    ],
)
def test_base_addresses_that_cannot_work_are_refused_without_echo(url: str) -> None:
    with pytest.raises(ValueError, match="base URL") as caught:
        OrchestratorHttp(url, KEY)
    assert "abc123" not in str(caught.value)


async def test_a_base_address_may_have_a_path_and_a_login(fake: FakeOrchestrator) -> None:
    address = fake.url.replace("http://", "http://user:password@")
    http = OrchestratorHttp(f"{address}/prefix/", KEY)
    with pytest.raises(CallRejected):  # the fake knows no such prefix
        await MainClient(http, PROFILE).claim()
    (call,) = fake.calls
    assert call.path == "/prefix/internal/main/jobs/claim"
    assert call.headers["authorization"] == "Basic dXNlcjpwYXNzd29yZA=="
    await http.aclose()
