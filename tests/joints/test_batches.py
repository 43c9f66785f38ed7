"""Batches over a real socket, a real registry and a real receiver of webhooks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.store.batch_values import MAX_BATCHES
from orchestrator.store.delivery_values import Try
from serve_app.config.settings import QueueSettings
from tests.contract.webhook_target import listening
from tests.described import ingress_document
from tests.joints.job_door import WEBHOOKS_ON, Door, Graph, body, delivering, serving
from tests.waiting import until_async

BATCHES, JOBS = "/v1/avatar/batches", "/v1/avatar/jobs"


def batch(*jobs: dict[str, object], **changes: object) -> dict[str, object]:
    return {"jobs": list(jobs), **changes}


def unnamed(**changes: object) -> dict[str, object]:
    sent = body(**changes)
    del sent["musetalk_job_id"]
    return sent


@contextlib.asynccontextmanager
async def opened(
    folder: Path, queue: QueueSettings | None = None, **environment: str
) -> AsyncIterator[tuple[Door, httpx.AsyncClient]]:
    """A door, and a client that compares every answer with the document."""
    results = folder / "results"
    results.mkdir(exist_ok=True)
    door = Door(folder, Graph(results), queue, **environment)
    document = ingress_document()

    async def check(answer: httpx.Response) -> None:
        await answer.aread()
        document.check(answer)

    try:
        async with serving(door.app) as client:
            client.event_hooks["response"] = [check]
            yield door, client
    finally:
        door.registry.close()


async def run_all(door: Door) -> None:
    while await door.services.jobs.run_next() is not None:
        pass


async def test_a_batch_is_followed_from_its_submission_to_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as (door, client):
        sent = batch(body("a"), unnamed(), body("c"), metadata={"campaign": 7})
        made = await client.post(BATCHES, json=sent)
        told = made.json()
        assert (made.status_code, told["status"], told["progress"]) == (202, "queued", 0.0)
        assert made.headers["Location"] == f"{BATCHES}/{told['id']}"
        assert [job["id"] for job in told["jobs"]][::2] == ["a", "c"]
        assert told["counts"]["queued"] == 3 and told["metadata"] == {"campaign": 7}
        assert (await client.get(f"{JOBS}/a")).json()["status"] == "queued"
        await client.delete(f"{JOBS}/c")
        ran = await door.services.jobs.run_next()
        assert ran is not None and ran.id == "a"
        half = (await client.get(made.headers["Location"])).json()
        assert (half["status"], half["progress"], half["ended_at"]) == ("running", 0.6667, None)
        assert half["counts"] == {
            "queued": 1, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 1,
        }  # fmt: skip
        assert "/files/a.mp4" in half["jobs"][0]["output_url"]
        assert half["jobs"][2]["error"] == "The job was cancelled before it finished."
        await run_all(door)
        done = (await client.get(made.headers["Location"])).json()
        assert (done["status"], done["progress"]) == ("cancelled", 1.0)
        assert done["ended_at"] >= done["created_at"]


async def test_a_batch_with_one_wrong_job_is_refused_whole_and_names_it(tmp_path: Path) -> None:
    async with opened(tmp_path, QueueSettings(max_batched_jobs=4)) as (door, client):
        await client.post(JOBS, json=body("taken"))
        other = body("taken", video_url="https://h.example/other.mp4")
        twice = "jobs.0 and jobs.1 have the same musetalk_job_id"
        named = {**unnamed(), "avatar_id": "0" * 32}
        del named["video_url"]
        cases: list[tuple[Any, int, str]] = [
            ([body("a"), {"x": 1}], 422, "jobs.1.audio_url"),
            ([body("a"), body("b", resoluton="720p")], 422, "jobs.1.resoluton"),
            ([body("a"), body("b", resolution="big")], 422, "jobs.1: "),
            ([body("a"), body("b", params={"crf": "x"})], 422, "jobs.1.params.crf"),
            ([body("a"), body("b", webhook_url="https://h.example/")], 422, "jobs.1.webhook_url"),
            ([body("a"), unnamed(video_url=None)], 422, "jobs.1.video_url"),
            ([body("a"), named], 404, "jobs.1: There is no such avatar"),
            ([body("a"), unnamed(video_url="upload://" + "0" * 32)], 404, "jobs.1: "),
            ([body("a"), other], 409, "jobs.1: This id belongs to a job with different content"),
            ([body("a"), body("a")], 422, twice),
            ([], 422, "jobs"),
            ([unnamed()] * 501, 422, "a batch has at most 500 jobs"),
            ([unnamed()] * 5, 429, "The queue is full"),
        ]
        for jobs, status, text in cases:
            refused = await client.post(BATCHES, json={"jobs": jobs})
            assert (refused.status_code, text in refused.json()["error_message"]) == (status, True)
            assert [job.id for job in door.registry.page(None, 10).jobs] == ["taken"], text
        assert (await client.post(BATCHES, json=batch(*[unnamed()] * 4))).status_code == 202


async def test_a_batch_is_cancelled_whole(tmp_path: Path) -> None:
    async with opened(tmp_path) as (door, client):
        made = (await client.post(BATCHES, json=batch(body("a"), body("b")))).json()
        path = f"{BATCHES}/{made['id']}"
        await door.services.jobs.run_next()
        cancelled = await client.delete(path)
        assert (cancelled.status_code, cancelled.json()["detail"]) == (
            200,
            "Cancellation requested",
        )
        assert [job["status"] for job in (await client.get(path)).json()["jobs"]] == [
            "succeeded", "cancelled",
        ]  # fmt: skip
        again = await client.delete(path)
        assert (again.status_code, again.json()["code"]) == (409, "batch_ended")
        for method in ("GET", "DELETE"):
            missing = await client.request(method, f"{BATCHES}/{'0' * 32}")
            assert (missing.status_code, missing.json()["code"]) == (404, "batch_not_found")
            assert (await client.request(method, f"{BATCHES}/x")).status_code == 422


async def test_an_idempotency_key_gives_the_same_batch(tmp_path: Path) -> None:
    async with opened(tmp_path) as (door, client):
        key = {"Idempotency-Key": "order-1"}
        sent = batch(unnamed(), body("b"))
        first = await client.post(BATCHES, json=sent, headers=key)
        signed = batch(unnamed(video_url="https://h.example/v.mp4?signature=2"), body("b"))
        second = await client.post(BATCHES, json=signed, headers=key)
        assert first.json() == second.json()
        assert len(door.registry.page(None, 10).jobs) == 2
        for other in (batch(body("b"), unnamed()), batch(unnamed())):
            refused = await client.post(BATCHES, json=other, headers=key)
            assert (refused.status_code, refused.json()["code"]) == (409, "batch_conflict")


async def test_single_jobs_go_before_those_of_a_batch_and_find_room(tmp_path: Path) -> None:
    async with opened(tmp_path, QueueSettings(max_queued_jobs=1)) as (door, client):
        await client.post(BATCHES, json=batch(*(body(f"b{n}") for n in range(3))))
        assert (await client.post(JOBS, json=body("single"))).status_code == 202
        assert (await client.post(JOBS, json=body("more"))).status_code == 429
        ran = await door.services.jobs.run_next()
        assert ran is not None and ran.id == "single"


@pytest.mark.slow
async def test_a_batch_may_have_500_jobs_with_signed_addresses(tmp_path: Path) -> None:
    signed = "?signature=" + "x" * 1500
    jobs = [
        unnamed(video_url=f"https://h.example/{n}.mp4{signed}", audio_url=f"https://h.example/a{n}")
        for n in range(500)
    ]
    async with opened(tmp_path) as (_, client):
        made = await client.post(BATCHES, json={"jobs": jobs})
        assert made.status_code == 202 and made.json()["counts"]["queued"] == 500
        assert len(json.dumps(jobs)) > 700_000
        large = await client.post(BATCHES, content=b" " * (4 * 1024 * 1024 + 1))
        assert (large.status_code, large.json()["code"]) == (413, "body_too_large")


@pytest.mark.slow
async def test_one_webhook_comes_when_all_have_ended_also_after_a_restart(tmp_path: Path) -> None:
    with listening() as target:
        async with opened(tmp_path, **WEBHOOKS_ON) as (door, client):
            sent = batch(body("a"), body("b"), webhook_url=target.url, metadata={"n": 1})
            made = (await client.post(BATCHES, json=sent)).json()
            await door.services.jobs.run_next()
            assert door.registry.take_delivery(60.0) is None
            await run_all(door)
            # The process dies here, before anything was queued for delivery.
        async with opened(tmp_path, **WEBHOOKS_ON) as (door, _), delivering(door):
            await until_async(lambda: target.got, "the webhook did not come")
            is_settled = lambda: door.registry.seconds_to_next_delivery() is None  # noqa: E731
            await until_async(is_settled, "the delivery was not stored")
            door.registry.forget(keep=0)
            assert door.registry.page(None, 10).jobs == ()
    [got] = target.got
    event = json.loads(got.body)
    assert (event["type"], event["data"]["id"]) == ("avatar.batch.succeeded", made["id"])
    assert event["data"]["counts"]["succeeded"] == 2 and event["data"]["metadata"] == {"n": 1}
    assert event["data"]["ended_at"] is not None
    assert all(job["output_url"].startswith("http") for job in event["data"]["jobs"])
    assert got.headers["webhook-id"] == f"evt_{made['id']}"


@pytest.mark.slow
async def test_the_jobs_of_a_batch_are_kept_until_its_webhook_is_delivered(tmp_path: Path) -> None:
    async with opened(tmp_path, **WEBHOOKS_ON) as (door, client):
        sent = batch(body("a"), webhook_url="http://127.0.0.1:9/")
        await client.post(BATCHES, json=sent)
        await run_all(door)
        taken = door.registry.take_delivery(60.0)
        assert taken is not None and taken.is_of_batch
        door.registry.forget(keep=0)
        assert len(door.registry.page(None, 10).jobs) == 1
        door.registry.settle_delivery(taken, Try(410, "answered 410"), None)
        door.registry.forget(keep=0)
        assert door.registry.page(None, 10).jobs == ()


@pytest.mark.slow
async def test_a_batch_is_kept_as_long_as_its_jobs(tmp_path: Path) -> None:
    async with opened(tmp_path) as (door, client):
        made = (await client.post(BATCHES, json=batch(body("a"), body("b")))).json()
        path = f"{BATCHES}/{made['id']}"
        await door.services.jobs.run_next()
        door.registry.forget(keep=0)
        kept = (await client.get(path)).json()
        assert [job["status"] for job in kept["jobs"]] == ["succeeded", "queued"]
        await run_all(door)
        await client.post(JOBS, json=body("later"))
        await run_all(door)
        door.registry.forget(keep=2)  # the end of the batch is noticed, and nothing is deleted yet
        assert (await client.get(path)).status_code == 200
        door.registry.forget(keep=2)
        assert (await client.get(f"{JOBS}/a")).status_code == 404
        assert (await client.get(path)).status_code == 404
        assert (await client.get(f"{JOBS}/b")).status_code == 200


@pytest.mark.slow
async def test_a_job_is_in_a_bounded_number_of_batches(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, client):
        for _ in range(MAX_BATCHES):
            assert (await client.post(BATCHES, json=batch(body("a")))).status_code == 202
        refused = await client.post(BATCHES, json=batch(body("a")))
        assert (refused.status_code, refused.json()["code"]) == (409, "too_many_joined")
