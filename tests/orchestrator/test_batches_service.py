"""Batches at the orchestrator, over a real socket, on both databases."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from lipsync_client import Batch, LipsyncClient, NewJob
from orchestrator.store import batches as stored
from orchestrator.store.batch_values import MAX_BATCHES, NewBatch
from tests.described import Document
from tests.orchestrator.databases import RULES, Databases, SqliteFiles, open_bench
from tests.orchestrator.running import ADMIN_KEY, DONE, Running, assert_error, running_service
from tests.orchestrator.test_deliveries import SECRET

BATCHES, JOBS = "/v1/avatar/batches", "/v1/avatar/jobs"
FEW = replace(RULES, max_queued=4)


@pytest.fixture
def batches(databases: Databases, tmp_path: Path) -> Iterator[Running]:
    """A running service on a database of each kind, in which few jobs may wait."""
    with running_service(open_bench(databases.new(tmp_path), FEW)) as running:
        yield running


def job(job_id: str | None = None, **changes: Any) -> dict[str, Any]:
    """Return a job of a batch."""
    media = {"video_url": "https://media.example/v.mp4", "audio_url": "https://media.example/a.wav"}
    named = {} if job_id is None else {"musetalk_job_id": job_id}
    return {**media, **named, **changes}


def batch(*jobs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"jobs": list(jobs), **fields}


def finish(service: Running, *workers: str) -> None:
    """Let each of these workers do the next job."""
    for worker in workers:
        claimed = service.claim(worker)
        assert claimed is not None
        assert service.report(claimed["musetalk_job_id"], worker, **DONE).status_code == 200


def test_a_batch_is_followed_from_its_submission_to_its_end(
    batches: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orchestrator")
    document = Document(batches.admin.get("/openapi.json").json())
    batches.admin.event_hooks["response"] = [lambda answer: [answer.read(), document.check(answer)]]
    sent = batch(job("b"), job(), job("a", params={"crf": 20}), metadata={"campaign": 7})
    made = batches.admin.post(BATCHES, json=sent)
    told = made.json()
    assert (made.status_code, told["status"], told["progress"]) == (202, "queued", 0.0)
    assert made.headers["Location"] == f"{BATCHES}/{told['id']}"
    assert [one["id"] for one in told["jobs"]][::2] == ["b", "a"]
    assert told["metadata"] == {"campaign": 7} and told["ended_at"] is None
    assert batches.admin.get(made.headers["Location"]).json() == told
    [line] = [record for record in caplog.records if record.message == "batch submitted"]
    facts = {name: vars(line)[name] for name in ("batch_id", "jobs", "client")}
    assert facts == {"batch_id": told["id"], "jobs": 3, "client": "admin"}

    claimed = batches.claim("w1")
    assert claimed is not None and claimed["musetalk_job_id"] == "b"  # in the order of the batch
    batches.report("b", "w1")
    half = batches.admin.get(made.headers["Location"]).json()
    assert (half["status"], half["progress"]) == ("running", round(0.5 / 3, 4))
    batches.report("b", "w1", **DONE)
    finish(batches, "w2")
    failure = {"status": "failed", "phase": "failed", "error": "No face."}
    claimed = batches.claim("w3")
    assert claimed is not None and claimed["musetalk_job_id"] == "a"
    told_why = {"failure": {"error_type": "media_error", "code": "no_face"}}
    batches.report("a", "w3", **failure, **told_why)
    done = batches.admin.get(made.headers["Location"]).json()
    assert (done["status"], done["progress"]) == ("failed", 1.0)
    assert done["counts"] == {
        "queued": 0, "running": 0, "succeeded": 2, "failed": 1, "cancelled": 0,
    }  # fmt: skip
    assert done["jobs"][0]["output_url"] == DONE["output_url"]
    assert done["jobs"][2]["error"] == "No face."
    assert done["ended_at"] >= done["created_at"]
    assert_error(batches.admin.delete(made.headers["Location"]), 409, "batch_ended")
    assert {(f"{method} {BATCHES}{rest}", status) for method, rest, status in (
        ("POST", "", 202), ("GET", "/{batch_id}", 200), ("DELETE", "/{batch_id}", 409),
    )} <= document.checked  # fmt: skip


@pytest.mark.slow
def test_a_client_sees_its_own_batches_only(batches: Running) -> None:
    store = batches.bench.store
    key = {"Idempotency-Key": "k"}
    with (
        batches.caller(store.add_key("client", "a")) as a,
        batches.caller(store.add_key("client", "b")) as b,
    ):
        mine = a.post(BATCHES, json=batch(job("x")), headers=key).json()
        path = f"{BATCHES}/{mine['id']}"
        for answer in (b.get(path), b.delete(path)):
            assert_error(answer, 404, "batch_not_found")
        stolen = b.post(BATCHES, json=batch(job(), job("x")))
        assert_error(stolen, 409, "job_conflict")
        assert stolen.json()["details"]["field"] == "jobs.1"
        theirs = b.post(BATCHES, json=batch(job()), headers=key).json()
        assert theirs["id"] != mine["id"] and a.get(path).json() == mine
        assert batches.admin.get(path).json() == mine
        assert_error(batches.worker.get(path), 403, "key_of_another_kind")
        assert_error(batches.nobody.post(BATCHES, json=batch(job())), 401, "key_missing")
        assert batches.admin.delete(path).status_code == 200
        assert a.get(path).json()["status"] == "cancelled"
    for none in ("0" * 32, mine["id"][::-1]):
        assert_error(batches.admin.get(f"{BATCHES}/{none}"), 404, "batch_not_found")
    assert_error(batches.admin.get(f"{BATCHES}/x"), 422, "invalid_request")


@pytest.mark.slow
def test_a_batch_with_one_wrong_job_is_refused_whole_and_names_it(batches: Running) -> None:
    batches.submit("taken")
    other = job("taken", video_url="https://media.example/other.mp4")
    twice = "jobs.0 and jobs.1 have the same musetalk_job_id"
    cases: list[tuple[list[dict[str, Any]], int, str, str]] = [
        ([job("z"), {"x": 1}], 422, "invalid_request", "jobs.1.audio_url"),
        ([job("z"), job("b", resoluton="720p")], 422, "invalid_request", "jobs.1.resoluton"),
        ([job("z"), job("b", priority=10)], 422, "invalid_request", "jobs.1.priority"),
        ([job("z"), job("b", webhook_url="https://h.example/")], 422, "webhooks_off", "WEBHOOK"),
        ([job("z"), job("b", video_url=None)], 422, "invalid_request", "jobs.1: "),
        ([job("z"), other, job()], 409, "job_conflict", "jobs.1: "),
        ([job("z"), job("z")], 422, "invalid_request", twice),
        ([], 422, "invalid_request", "jobs: "),
        ([job()] * 501, 422, "invalid_request", "a batch has at most 500 jobs"),
        ([job()] * 4, 429, "queue_full", "As many jobs wait as may wait."),
    ]
    for jobs, status, code, text in cases:
        refused = batches.admin.post(BATCHES, json={"jobs": jobs})
        assert_error(refused, status, code)
        assert text in refused.json()["error_message"]
        assert [one["id"] for one in batches.admin.get(JOBS).json()["jobs"]] == ["taken"], text
    assert refused.headers["Retry-After"]
    assert batches.admin.post(BATCHES, json=batch(*[job()] * 3)).status_code == 202


def test_an_idempotency_key_gives_the_same_batch(batches: Running) -> None:
    headers = {"Idempotency-Key": "k"}

    def post(*jobs: dict[str, Any], **fields: Any) -> httpx.Response:
        return batches.admin.post(BATCHES, json=batch(*jobs, **fields), headers=headers)

    with ThreadPoolExecutor(4) as threads:
        ids = {
            made.result().json()["id"]
            for made in [threads.submit(post, job("a"), job()) for _ in range(8)]
        }
    assert len(ids) == 1
    assert len(batches.admin.get(JOBS).json()["jobs"]) == 2
    signed = job("a", video_url="https://media.example/v.mp4?signature=two")
    assert post(signed, job()).json()["id"] in ids
    for other in ([job(), job("a")], [job("a")], [job("a"), job(metadata={"n": 1})]):
        assert_error(post(*other), 409, "batch_conflict")


def test_a_batch_is_cancelled_whole_while_some_jobs_run(batches: Running) -> None:
    made = batches.admin.post(BATCHES, json=batch(job("a"), job("b"), job("c"))).json()
    path = f"{BATCHES}/{made['id']}"
    finish(batches, "w1")
    running = batches.claim("w2")
    assert running is not None and running["musetalk_job_id"] == "b"
    cancelled = batches.admin.delete(path)
    assert (cancelled.status_code, cancelled.json()["detail"]) == (200, "Cancellation requested")
    told = batches.admin.get(path).json()
    assert [one["status"] for one in told["jobs"]] == ["succeeded", "cancelled", "cancelled"]
    assert (told["status"], told["ended_at"] is not None) == ("cancelled", True)
    assert_error(batches.report("b", "w2"), 409, "job_gone")
    assert batches.claim("w3") is None
    assert_error(batches.admin.delete(path), 409, "batch_ended")
    again = batches.admin.post(f"{JOBS}/c/retry")
    assert again.status_code == 200 and batches.admin.get(path).json()["status"] == "running"


@pytest.mark.slow
def test_batches_with_the_same_jobs_do_not_lock_each_other_out(batches: Running) -> None:
    """In opposite orders, which deadlocks where jobs are locked in the order of the batch."""
    names = [f"job-{number}" for number in range(4)]

    def both(order: list[str]) -> int:
        made = batches.admin.post(BATCHES, json=batch(*map(job, order)))
        assert made.status_code == 202, made.text
        return batches.admin.delete(f"{BATCHES}/{made.json()['id']}").status_code

    with ThreadPoolExecutor(4) as threads:
        ends = list(threads.map(both, [names, names[::-1]] * 8))
    assert set(ends) <= {200, 409}


def test_jobs_alone_and_those_of_other_clients_go_before_a_waiting_batch(batches: Running) -> None:
    batches.admin.post(BATCHES, json=batch(job("b0"), job("first", priority=9)))
    batches.submit("alone")
    with batches.caller(batches.bench.store.add_key("client", "other")) as other:
        other.post(JOBS, json=job("theirs", priority=0))
    order = [batches.claim(f"w{number}") for number in range(4)]
    names = [one and one["musetalk_job_id"] for one in order]
    assert names == ["first", "theirs", "alone", "b0"]
    shown = [batches.admin.get(f"{JOBS}/{name}").json()["priority"] for name in ("b0", "first")]
    assert shown == [0, 9]


def test_a_job_is_in_a_bounded_number_of_batches(service: Running) -> None:
    service.submit("a")
    with service.bench.database.write() as tx:
        for number in range(MAX_BATCHES):
            stored.submit(tx, NewBatch(str(number), "admin", "content"), 1, lambda: ["a"])
    refused = service.admin.post(BATCHES, json=batch(job(), job("a")))
    assert_error(refused, 409, "too_many_joined")
    assert refused.json()["details"]["field"] == "jobs.1"


def test_a_batch_is_kept_as_long_as_its_jobs(batches: Running) -> None:
    bench = batches.bench
    made = batches.admin.post(BATCHES, json=batch(job("a"), job("b"))).json()
    path = f"{BATCHES}/{made['id']}"
    finish(batches, "w1")
    bench.age(RULES.keep_ended_s + 1)
    assert bench.store.forget() == 0  # the batch has not ended
    finish(batches, "w2")
    bench.store.forget()  # one job is too old, and the other one is not
    assert batches.admin.get(f"{JOBS}/b").status_code == 200
    assert_error(batches.admin.get(f"{JOBS}/a"), 404, "job_not_found")
    assert_error(batches.admin.get(path), 404, "batch_not_found")


@pytest.mark.slow
def test_the_webhooks_of_a_batch_are_checked_before_it_is_queued(
    sqlite_files: SqliteFiles, tmp_path: Path
) -> None:
    here, inside = "http://127.0.0.1:9/hook", "http://10.0.0.1/hook"
    bench = open_bench(sqlite_files.new(tmp_path), RULES)
    variables = {"WEBHOOK_SECRET": SECRET, "ORCHESTRATOR_WEBHOOK_HOSTS": "127.0.0.1"}
    with running_service(bench, **variables) as service:
        cases: list[tuple[dict[str, Any], str, str]] = [
            (batch(job(), webhook_url=inside), "webhook_refused", "webhook_url"),
            (batch(job(), job(webhook_url=inside)), "webhook_refused", "jobs.1.webhook_url"),
            (
                batch(*[job(webhook_url=f"{here}/{number}") for number in range(17)]),
                "invalid_request",
                "jobs.16.webhook_url",
            ),
        ]
        for sent, code, field in cases:
            refused = service.admin.post(BATCHES, json=sent)
            assert_error(refused, 422, code)
            assert refused.json()["details"]["field"] == field
        assert service.admin.get(JOBS).json()["jobs"] == []
        sent = batch(*[job(webhook_url=f"{here}/{number % 16}") for number in range(17)])
        made = service.admin.post(BATCHES, json=sent | {"webhook_url": here})
        assert made.status_code == 202
        assert bench.store.get_batch(made.json()["id"]).webhook_url == here


def test_the_python_client_submits_waits_and_cancels(service: Running) -> None:
    media = "https://media.example/v.mp4", "https://media.example/a.wav"
    seen: list[Batch] = []
    with LipsyncClient(service.url, ADMIN_KEY) as client, ThreadPoolExecutor(1) as threads:
        made = client.submit_batch([NewJob(*media), NewJob(*media)])
        assert (made.status, len(made.jobs)) == ("queued", 2)
        waiting = threads.submit(client.wait_batch, made.id, seen.append, timeout_s=60.0)
        finish(service, "w1", "w2")
        done = waiting.result()
        assert (done.status, done.counts["succeeded"]) == ("succeeded", 2)
        assert {one["output_url"] for one in done.raw["jobs"]} == {DONE["output_url"]}
        other = client.submit_batch([NewJob(*media)])
        client.cancel_batch(other.id)
        assert client.wait_batch(other.id, timeout_s=60.0).status == "cancelled"


@pytest.mark.slow
def test_a_batch_may_have_500_jobs_with_signed_addresses(
    databases: Databases, tmp_path: Path
) -> None:
    signed = "?signature=" + "x" * 1500
    media = "https://media.example"
    jobs = [
        job(video_url=f"{media}/{number}.mp4{signed}", audio_url=f"{media}/{number}.wav{signed}")
        for number in range(500)
    ]
    bench = open_bench(databases.new(tmp_path), RULES)
    # A reverse proxy removes the prefix before it passes a request on.
    with running_service(bench, ORCHESTRATOR_ROOT_PATH="/queue") as service:
        made = service.admin.post(BATCHES, json=batch(*jobs))
        assert (made.status_code, made.json()["counts"]["queued"]) == (202, 500)
        assert len(made.request.content) > 1 << 20
        large = service.admin.post(BATCHES, content=b" " * ((4 << 20) + 1))
        assert_error(large, 413, "body_too_large")
        first = service.claim()
        assert first is not None and first["video_url"] == jobs[0]["video_url"]
        path = made.headers["Location"].removeprefix("/queue")
        assert service.admin.delete(path).status_code == 200
        assert service.admin.get(path).json()["counts"]["cancelled"] == 500
