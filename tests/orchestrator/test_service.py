"""The HTTP service over a real socket: the protocol of workers, and the job API."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.service.errors import HINTS
from tests.orchestrator.databases import RULES, SqliteFiles, open_bench
from tests.orchestrator.running import ADMIN_KEY, DONE, INTERNAL_KEY, Running, running_service

BODY = {"video_url": "https://media.example/v.mp4", "audio_url": "https://media.example/a.wav"}
SYSTEM_INFO = {"cpu_cores_physical": 4, "cpu_model": "Test CPU", "download_speed_mbps": None}


def beat(service: Running, **fields: Any) -> dict[str, Any]:
    body = {
        "status": "idle",
        "current_job_id": None,
        "provider": "salad",
        "gpu_class": "RTX-3090-24GB",
        "worker_type": "main",
        "system_info": SYSTEM_INFO,
    }
    answer = service.worker.post("/internal/main/workers/w1/heartbeat", json=body | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def assert_error(answer: httpx.Response, status: int, code: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert body["status"] == "failed"
    assert body["hint"] == HINTS[code]
    assert body["error_message"].endswith(".")
    assert {"error_type", "stage", "details", "retryable", "stage_times", "input"} <= set(body)


# The worker's protocol -----------------------------------------------------------------------


def test_the_predecessors_main_worker_is_served_as_it_expects(service: Running) -> None:
    service.submit("job-1", aspect_ratio="9:16", resolution="720p")
    said = {"worker_type": "main", "gpu_class": "RTX-3090", "provider": "salad", "capacity": 1}
    registered = service.worker.post("/internal/main/workers/w1/register", json=said)
    assert registered.status_code == 200
    assert beat(service) == {"detail": "ok"}
    job = service.claim()
    assert job is not None
    fields = ("musetalk_job_id", "video_url", "audio_url", "aspect_ratio", "resolution")
    assert [job[name] for name in fields] == [
        "job-1",
        "https://media.example/v.mp4?signature=s",
        "https://media.example/a.wav?signature=s",
        "9:16",
        "720p",
    ]
    assert set(job) - set(fields) == {"attempt", "lease_s"}
    assert beat(service, status="busy", current_job_id="job-1") == {"detail": "ok"}
    counts = {"frames_done": 5, "frames_total": 10}
    assert service.report("job-1", metrics=counts, config_label="a", batch_size=8).json() == {
        "detail": "ok"
    }
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert (shown["status"], shown["progress"]["frames_done"]) == ("running", 5)
    for _ in range(2):  # the answer to the first one may have been lost
        assert service.report("job-1", **DONE).status_code == 200
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert (shown["status"], shown["output_url"]) == ("succeeded", DONE["output_url"])
    assert shown["metrics"] == DONE["metrics"]
    assert service.worker.post("/internal/main/jobs/claim", json={"worker_id": "w1"}).json() == {
        "job": None
    }


def test_the_predecessors_buffer_worker_is_served_as_it_expects(service: Running) -> None:
    service.submit("job-1")
    said = {"status": "idle", "gpu_class": "RTX-3090", "capacity": 2, "error": None}
    answer = service.worker.post("/internal/buffer/workers/b1/heartbeat", json=said)
    assert answer.json() == {"detail": "ok"}
    answer = service.worker.post("/internal/buffer/jobs/claim", json={"worker_id": "b1"})
    job = answer.json()["job"]
    assert set(job) == {
        "buffer_job_id",
        "musetalk_job_id",
        "video_url",
        "audio_url",
        "attempt",
        "lease_s",
    }
    progress = {"progress": 0.05, "phase": "downloading", "config_label": "a", "batch_size": 4}
    assert service.report("job-1", "b1", **progress).status_code == 200
    status = {
        "status": "succeeded",
        "error": None,
        "output_url": "https://f/x.mp4",
        "metrics": {"a": 1},
    }
    path = f"/internal/buffer/jobs/{job['buffer_job_id']}/status"
    assert service.worker.post(path, json=status).json() == {"detail": "ok"}
    assert service.status("job-1") == "succeeded"
    assert_error(
        service.worker.post("/internal/buffer/jobs/unknown/status", json=status),
        404,
        "job_not_found",
    )


def test_a_held_claim_is_answered_when_a_job_comes(service: Running) -> None:
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(service.claim, f"w{number}", wait_s=30) for number in range(3)]
        service.wait_for_held_claims(3)
        for number in range(3):
            service.submit(f"job-{number}")
        jobs = [future.result(timeout=20) for future in held]
    assert sorted(job["musetalk_job_id"] for job in jobs if job) == ["job-0", "job-1", "job-2"]


def test_a_held_claim_passes_a_job_on_that_is_not_for_it(service: Running) -> None:
    service.submit("job-1")
    assert service.claim("w0") is not None
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(service.claim, "w0", wait_s=30)
        service.wait_for_held_claims(1)
        second = pool.submit(service.claim, "w1", wait_s=30)
        service.wait_for_held_claims(2)
        service.report("job-1", "w0", status="failed", phase="failed", error="out of memory")
        job = second.result(timeout=20)
        assert job is not None
        assert job["attempt"] == 2
        service.submit("job-2")
        again = first.result(timeout=20)
    assert again is not None
    assert again["musetalk_job_id"] == "job-2"


def test_a_heartbeat_is_told_what_to_stop_and_whether_to_drain(service: Running) -> None:
    service.submit("job-1")
    service.claim()
    listed = {"jobs": [{"musetalk_job_id": "job-1", "attempt": 1}], "status": "busy"}
    assert beat(service, **listed) == {"detail": "ok", "cancel": [], "drain": False}
    assert service.admin.delete("/v1/avatar/jobs/job-1").json() == {
        "detail": "Cancellation requested"
    }
    assert service.admin.post("/v1/workers/w1/drain").status_code == 200
    assert beat(service, **listed) == {"detail": "ok", "cancel": ["job-1"], "drain": True}
    claim = {"worker_id": "w1", "worker_type": "main", "gpu_class": "x"}
    answer = service.worker.post("/internal/main/jobs/claim", json=claim).json()
    assert answer == {"job": None, "error": "This worker was asked to claim nothing more."}
    assert service.admin.delete("/v1/workers/w1/drain").status_code == 200
    (worker,) = service.admin.get("/v1/workers").json()["workers"]
    assert (worker["drain"], worker["provider"]) == (False, "salad")
    assert worker["system_info"] == SYSTEM_INFO
    assert_error(service.admin.post("/v1/workers/w9/drain"), 404, "worker_not_found")


def test_a_report_of_a_late_attempt_is_answered_409(service: Running) -> None:
    service.submit("job-1")
    service.claim("w1")
    assert service.worker.post("/internal/main/workers/w1/goodbye", json={}).status_code == 200
    service.claim("w2")
    for late in ({}, DONE, {"attempt": 1}, DONE | {"attempt": 2}):
        assert_error(service.report("job-1", "w1", **late), 409, "job_gone")
    assert_error(service.report("job-2", "w1"), 404, "job_not_found")
    assert service.report("job-1", "w2", **DONE, attempt=2).status_code == 200


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (None, "queued"),
        ({"error_type": "media_error", "code": "no_face", "retryable": False}, "failed"),
        ({"error_type": "media_error", "code": "download_failed", "retryable": True}, "queued"),
        ({"error_type": "processing_error", "code": "stage_failed"}, "queued"),
    ],
)
def test_a_failure_is_what_the_worker_says_it_is(
    service: Running, failure: dict[str, Any] | None, state: str
) -> None:
    service.submit("job-1")
    service.claim()
    said = {"status": "failed", "phase": "failed", "error": "It did not work.", "failure": failure}
    assert service.report("job-1", **said).status_code == 200
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert (shown["state"], shown["error"]) == (state, "It did not work.")
    assert shown["failure"] == failure
    assert shown["failures"] == (1 if state == "queued" else 0)


def test_a_success_without_its_result_is_a_failure(service: Running) -> None:
    service.submit("job-1")
    service.claim()
    assert service.report("job-1", **DONE | {"output_url": None}).status_code == 200
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert shown["state"] == "queued"
    assert "without an output_url" in shown["error"]
    assert service.claim("w1") is None  # that machine does not get it again
    (attempt,) = service.admin.get("/v1/avatar/jobs/job-1/attempts").json()["attempts"]
    assert (attempt["worker_id"], attempt["end"]) == ("w1", "failed")


# The job API ---------------------------------------------------------------------------------


def test_a_job_is_submitted_listed_retried_and_cancelled(service: Running) -> None:
    made = service.admin.post("/v1/avatar/jobs", json=BODY | {"metadata": {"order": 7}})
    job = made.json()
    assert (made.status_code, job["status"]) == (202, "queued")
    assert (job["output_url"], job["metrics"], job["error"]) == (None, None, None)
    assert made.headers["Location"] == f"/v1/avatar/jobs/{job['id']}"
    assert service.admin.get(made.headers["Location"]).json() == job
    service.submit("a/b ü")
    assert service.admin.get("/v1/avatar/jobs/a%2Fb%20%C3%BC").json()["id"] == "a/b ü"
    first = service.admin.get("/v1/avatar/jobs", params={"limit": 1}).json()
    rest = {"limit": 1, "cursor": first["next_cursor"]}
    second = service.admin.get("/v1/avatar/jobs", params=rest).json()
    assert [first["jobs"][0]["id"], second["jobs"][0]["id"]] == ["a/b ü", job["id"]]
    assert second["next_cursor"] is None
    at = f"/v1/avatar/jobs/{job['id']}"
    assert_error(service.admin.post(f"{at}/retry"), 409, "job_not_ended")
    assert service.admin.delete(at).status_code == 200
    assert_error(service.admin.delete(at), 409, "job_ended")
    assert service.admin.post(f"{at}/retry").json()["status"] == "queued"


def test_a_dead_job_is_a_failed_one_to_clients_that_know_no_such_state(service: Running) -> None:
    service.submit("job-1")
    for number in range(3):
        service.claim(f"w{number}")
        service.report("job-1", f"w{number}", status="failed", phase="failed", error="boom")
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert (shown["status"], shown["state"], shown["failures"]) == ("failed", "dead", 3)
    for status, count in (("failed", 1), ("dead", 1), ("queued", 0)):
        found = service.admin.get("/v1/avatar/jobs", params={"status": status}).json()
        assert len(found["jobs"]) == count


def test_signatures_of_addresses_are_not_shown(service: Running) -> None:
    assert "signature" not in json.dumps(service.submit("job-1"))


def test_the_same_idempotency_key_gives_the_same_job(service: Running) -> None:
    headers = {"Idempotency-Key": "k"}
    ids = {
        service.admin.post("/v1/avatar/jobs", json=BODY, headers=headers).json()["id"]
        for _ in range(3)
    }
    assert len(ids) == 1
    other = BODY | {"resolution": "1080p"}
    answer = service.admin.post("/v1/avatar/jobs", json=other, headers=headers)
    assert_error(answer, 409, "job_conflict")


@pytest.mark.parametrize(
    "change",
    [
        {"video_url": "ftp://media.example/v.mp4"},
        {"video_url": "https://"},
        {"video_url": "https://media.example/\0"},
        {"audio_url": None},
        {"musetalk_job_id": ""},
        {"musetalk_job_id": "x" * 257},
        {"priority": 10},
        {"deadline": "2030-01-01T00:00:00"},
        {"params": {"a": "x" * 20_000}},
        {"metadata": {str(number): number for number in range(65)}},
        {"webhook_url": "https://example.com/hook"},
    ],
)
def test_a_request_that_is_not_valid_names_its_field(
    shared_service: Running, change: dict[str, Any]
) -> None:
    answer = shared_service.admin.post("/v1/avatar/jobs", json=BODY | change)
    assert_error(answer, 422, "invalid_request")
    assert answer.json()["details"]["field"].startswith(next(iter(change)))
    assert "media.example" not in answer.text
    assert shared_service.admin.get("/v1/avatar/jobs").json()["jobs"] == []


def test_events_are_streamed_from_the_last_one_that_was_received(service: Running) -> None:
    service.submit("job-1")
    with service.admin.stream("GET", "/v1/avatar/jobs/job-1/events") as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("data")).endswith("}")
        service.claim()
        service.report("job-1")
        service.report("job-1", **DONE)
        rest = list(lines)
    kinds = [json.loads(line[5:])["kind"] for line in rest if '"kind"' in line]
    assert kinds == ["claimed", "phase", "succeeded"]
    end = json.loads(next(line for line in reversed(rest) if line.startswith("data:"))[5:])
    assert (end["id"], end["status"]) == ("job-1", "succeeded")
    assert "event: end" in rest
    again = service.admin.get("/v1/avatar/jobs/job-1/events", headers={"Last-Event-ID": "3"})
    assert again.text.count("event: progress") == 1
    assert_error(service.admin.get("/v1/avatar/jobs/none/events"), 404, "job_not_found")


# Who may call --------------------------------------------------------------------------------


def test_routes_need_their_keys(shared_service: Running) -> None:
    assert shared_service.nobody.get("/health").json()["status"] == "ok"
    jobs = "/v1/avatar/jobs"
    assert_error(shared_service.nobody.get(jobs), 401, "key_missing")
    assert_error(shared_service.worker.get(jobs), 403, "key_of_another_kind")
    claim = "/internal/main/jobs/claim"
    assert_error(shared_service.nobody.post(claim, json={"worker_id": "w"}), 401, "key_missing")
    assert_error(shared_service.admin.post(claim, json={"worker_id": "w"}), 403, "key_wrong")
    bearer = {"Authorization": f"Bearer {ADMIN_KEY}"}
    assert shared_service.nobody.get(jobs, headers=bearer).status_code == 200
    for wrong in ("nonsense", "a.b", f"{INTERNAL_KEY}x", "ü", "." * 300):
        headers = {"X-Internal-API-Key": wrong.encode()}
        assert_error(shared_service.nobody.get(jobs, headers=headers), 403, "key_wrong")


def test_a_client_sees_its_own_jobs_only(service: Running) -> None:
    store = service.bench.store
    with (
        service.caller(store.add_key("client", "a")) as a,
        service.caller(store.add_key("client", "b")) as b,
    ):
        job = a.post("/v1/avatar/jobs", json=BODY | {"musetalk_job_id": "job-1"}).json()
        assert a.get("/v1/avatar/jobs").json()["jobs"] == [job]
        assert b.get("/v1/avatar/jobs").json()["jobs"] == []
        for answer in (
            b.get("/v1/avatar/jobs/job-1"),
            b.delete("/v1/avatar/jobs/job-1"),
            b.post("/v1/avatar/jobs/job-1/retry"),
            b.get("/v1/avatar/jobs/job-1/events"),
        ):
            assert_error(answer, 404, "job_not_found")
        again = b.post("/v1/avatar/jobs", json=BODY | {"musetalk_job_id": "job-1"})
        assert_error(again, 409, "job_conflict")
        for operators in ("/v1/workers", "/v1/avatar/jobs/job-1/attempts"):
            assert_error(a.get(operators), 403, "key_of_another_kind")
    assert len(service.admin.get("/v1/avatar/jobs").json()["jobs"]) == 1


def test_a_workers_token_is_for_one_worker_until_it_is_revoked(service: Running) -> None:
    service.submit("job-1")
    store = service.bench.store
    token = store.add_key("worker", "w1")
    claim = "/internal/main/jobs/claim"
    with service.caller(token) as worker:
        assert_error(worker.post(claim, json={"worker_id": "w2"}), 403, "key_wrong")
        assert_error(worker.get("/v1/avatar/jobs"), 403, "key_of_another_kind")
        answer = worker.post("/internal/buffer/jobs/claim", json={"worker_id": "w1"})
        name = answer.json()["job"]["buffer_job_id"]
        with service.caller(store.add_key("worker", "w2")) as other:
            status = {"status": "failed", "error": "mine", "output_url": None, "metrics": None}
            stolen = other.post(f"/internal/buffer/jobs/{name}/status", json=status)
            assert_error(stolen, 409, "job_gone")
    store.revoke_key(token.partition(".")[0])
    service.services.access._clock = lambda: 1e12  # what was remembered is too old
    with service.caller(token) as worker:
        assert_error(worker.post(claim, json={"worker_id": "w1"}), 403, "key_wrong")


def test_only_digests_of_keys_are_stored(service: Running) -> None:
    key = service.bench.store.add_key("client", "a")
    key_id, secret = key.split(".")
    stored = service.bench.store.find_key(key_id)
    assert stored is not None
    assert secret.encode() not in stored.digest + stored.salt
    assert secret not in repr(stored)


def test_wrong_secrets_of_a_key_are_limited(service: Running) -> None:
    key_id = service.bench.store.add_key("client", "a").partition(".")[0]
    answers = []
    for number in range(21):
        headers = {"X-Internal-API-Key": f"{key_id}.{number}"}
        answers.append(service.nobody.get("/v1/avatar/jobs", headers=headers))
    assert_error(answers[0], 403, "key_wrong")
    assert_error(answers[-1], 429, "too_many_guesses")
    assert int(answers[-1].headers["Retry-After"]) >= 1


def test_a_client_that_asks_too_often_is_told_when_to_come_back(
    sqlite_files: SqliteFiles, tmp_path: Path
) -> None:
    bench = open_bench(sqlite_files.new(tmp_path), RULES)
    with running_service(bench, ORCHESTRATOR_REQUESTS_PER_MINUTE="3") as service:
        with service.caller(bench.store.add_key("client", "a")) as client:
            answers = [client.get("/v1/avatar/jobs") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert_error(answers[-1], 429, "too_many_requests")
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 20
        assert service.admin.get("/v1/avatar/jobs").status_code == 200


# Bounds and faults ---------------------------------------------------------------------------


def test_a_large_body_is_refused(shared_service: Running) -> None:
    large = b'{"worker_id": "' + b"x" * (1 << 20) + b'"}'
    headers = {"Content-Type": "application/json"}
    answer = shared_service.worker.post("/internal/main/jobs/claim", content=large, headers=headers)
    assert_error(answer, 413, "body_too_large")

    def pieces() -> Any:
        for _ in range(40):
            yield b" " * (1 << 15)

    answer = shared_service.worker.post(
        "/internal/main/jobs/claim", content=pieces(), headers=headers
    )
    assert_error(answer, 413, "body_too_large")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b'{"worker_id": "\\u0000"}'])
def test_nonsense_is_refused_in_the_one_shape(shared_service: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = shared_service.worker.post("/internal/main/jobs/claim", content=body, headers=headers)
    assert_error(answer, 422, "invalid_request")
    assert_error(shared_service.admin.get("/v1/nothing"), 404, "not_found")
    assert_error(shared_service.admin.put("/v1/avatar/jobs"), 405, "method_not_allowed")


def test_metrics_that_are_no_json_are_kept_without_what_is_not(service: Running) -> None:
    service.submit("job-1")
    service.claim()
    raw = json.dumps(
        {"worker_id": "w1", **DONE, "metrics": {"a": float("nan"), "b": float("inf"), "c": "\0"}}
    )
    headers = {"Content-Type": "application/json"}
    answer = service.worker.post("/internal/jobs/job-1/progress", content=raw, headers=headers)
    assert answer.status_code == 200
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert shown["metrics"] == {"a": None, "b": None, "c": "\0"}


def test_stopping_answers_the_claims_that_are_held(
    sqlite_files: SqliteFiles, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        bench = open_bench(sqlite_files.new(tmp_path), RULES)
        with running_service(bench) as service:
            held = pool.submit(service.claim, wait_s=30)
            service.wait_for_held_claims(1)
        assert held.result(timeout=20) is None
