"""The job API, who may call, and bounds, over a real socket."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.described import Document
from tests.orchestrator.databases import RULES, SqliteFiles, open_bench
from tests.orchestrator.running import (
    ADMIN_KEY,
    DONE,
    INTERNAL_KEY,
    Running,
    assert_error,
    running_service,
)

BODY = {"video_url": "https://media.example/v.mp4", "audio_url": "https://media.example/a.wav"}


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


def test_the_job_api_answers_as_its_document_says(service: Running) -> None:
    document = Document(service.admin.get("/openapi.json").json())
    for place, schema, example in document.examples():
        assert document.faults(schema, example) == [], place

    def checked(method: str, path: str, **sent: Any) -> int:
        answer = service.admin.request(method, f"/v1/avatar/jobs{path}", **sent)
        document.check(answer)
        return answer.status_code

    named = {"musetalk_job_id": "a", "metadata": {"order": 7}, "requires": {"min_vram_gb": 8}}
    assert checked("POST", "", json=BODY | named) == 202
    assert checked("POST", "", json=BODY | named | {"resolution": "720p"}) == 409
    assert checked("POST", "", json={}) == 422
    service.claim("w")
    service.report("a", "w", **DONE)
    assert (checked("GET", ""), checked("GET", "/a"), checked("GET", "/none")) == (200, 200, 404)
    assert (checked("GET", "/a/events"), checked("POST", "/a/retry")) == (200, 409)
    assert checked("DELETE", "/a") == 409
    service.submit("b")
    assert (checked("DELETE", "/b"), checked("POST", "/b/retry")) == (200, 200)
    assert len(document.checked) == 11


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
        {"callback_url": "https://example.com/hook"},
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
    tried = 0
    while (answer := service.nobody.get(
        "/v1/avatar/jobs", headers={"X-Internal-API-Key": f"{key_id}.{tried}"}
    )).status_code == 403:  # fmt: skip
        assert_error(answer, 403, "key_wrong")
        tried += 1
        assert tried < 200  # 20 at once, and one more every three seconds
    assert tried >= 20
    assert_error(answer, 429, "too_many_guesses")
    assert int(answer.headers["Retry-After"]) >= 1


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
