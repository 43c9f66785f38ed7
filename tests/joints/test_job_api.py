"""What callers of the job API are told, over a real socket and a real registry."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from standardwebhooks import Webhook

from serve_app.api.job_runner import JobRunner
from serve_app.graph.transfers import Attempt
from serve_app.jobs.job import Origin, SubmissionOptions
from serve_app.outputs.local import LocalStore
from tests.contract.webhook_target import listening
from tests.described import ingress_document
from tests.joints.job_door import WEBHOOKS_ON, Rig, body, delivering, job_door, request
from tests.waiting import until_async

JOBS = "/v1/avatar/jobs"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with job_door(tmp_path) as rig:
        yield rig


async def test_cancelling_what_has_ended_is_a_conflict_with_its_state(rig):
    """Mend 2.10."""
    await rig.client.post(JOBS, json=body("done"))
    await rig.service.run_next()
    await rig.client.post(JOBS, json=body("waiting"))
    live = await rig.client.delete(f"{JOBS}/waiting")
    assert (live.status_code, live.json()) == (200, {"detail": "Cancellation requested"})
    for job_id, status in (("done", "succeeded"), ("waiting", "cancelled")):
        answer = await rig.client.delete(f"{JOBS}/{job_id}")
        told = answer.json()
        assert (answer.status_code, told["code"]) == (409, "job_ended")
        assert told["details"] == {"status": status}
        assert (await rig.client.get(f"{JOBS}/{job_id}")).json()["status"] == status
    assert (await rig.client.delete(f"{JOBS}/unknown")).status_code == 404


async def test_a_job_that_was_cancelled_can_be_tried_again(rig):
    await rig.client.post(JOBS, json=body(metadata={"who": "me"}))
    waiting = await rig.client.post(f"{JOBS}/a/retry")
    assert (waiting.status_code, waiting.json()["code"]) == (409, "job_not_ended")
    await rig.client.delete(f"{JOBS}/a")
    again = await rig.client.post(f"{JOBS}/a/retry")
    told = again.json()
    assert (again.status_code, told["status"], told["metadata"]) == (200, "queued", {"who": "me"})
    assert (await rig.service.run_next()).id == "a"
    assert (await rig.client.get(f"{JOBS}/a")).json()["status"] == "succeeded"
    ended = await rig.client.post(f"{JOBS}/a/retry")
    assert (ended.status_code, ended.json()["code"]) == (409, "job_ended")
    unknown = await rig.client.post(f"{JOBS}/unknown/retry")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "job_not_found")


async def test_the_caller_of_a_cancelled_job_is_not_asked_to_try_again(rig):
    """Mend 1.12: a 5xx would make Salad's queue do the cancelled job after all."""
    rig.graph.holds = True
    asked = asyncio.create_task(rig.client.post("/generate", json=body()))
    await until_async(lambda: rig.door.registry.get("a"), "the job was not entered")
    work = asyncio.create_task(rig.service.run_next())
    await rig.graph.inferring.wait()
    await rig.client.delete(f"{JOBS}/a")
    answer = await asked
    told = answer.json()
    assert (answer.status_code, told["code"], told["retryable"]) == (409, "cancelled", False)
    assert (told["status"], told["error_type"]) == ("failed", "processing_error")
    await work
    assert rig.graph.at_work == 0


async def test_a_success_whose_file_is_gone_is_done_again(rig):
    """Mend 1.11: with the addresses that came with the new request."""
    for signature in ("1", "2"):
        video_url = f"https://h.example/v.mp4?sig={signature}"
        asked = asyncio.create_task(rig.client.post("/generate", json=body(video_url=video_url)))
        await until_async(lambda: _status(rig) == "queued", "the job was not queued")
        await rig.service.run_next()
        assert (await asked).status_code == 200
        again = await rig.client.post("/generate", json=body())  # the file is there: at once
        assert again.json() == (await asked).json()
        (rig.graph.results / "a.mp4").unlink()
    assert [work.request.video_url[-5:] for work in rig.graph.ran] == ["sig=1", "sig=2"]


async def test_an_orchestrator_hears_of_a_job_that_is_pushed_again_and_before_a_stop(rig):
    """Mend 1.3: it gets a report of every push, and of the last job before the process ends."""

    class Reports:
        told: ClassVar[list[str]] = []

        async def report_again(self, job):
            self.told.append(job.id)

        async def settle(self, seconds):
            self.told.append("all")

    async def nothing(slot):
        """No call of a slot comes here."""

    rig.door.change(reports=Reports())
    asked = asyncio.create_task(rig.client.post("/generate", json=body()))
    await until_async(lambda: _status(rig) == "queued", "the job was not queued")
    await rig.service.run_next()
    assert (await asked).status_code == 200
    assert Reports.told == []  # the run itself has told
    assert (await rig.client.post("/generate", json=body())).status_code == 200
    assert Reports.told == ["a"]
    await JobRunner(rig.door.services, nothing).drain()
    assert Reports.told == ["a", "all"]


def _status(rig: Rig) -> str | None:
    job = rig.door.registry.get("a")
    return None if job is None else job.status


async def test_joining_a_job_keeps_the_metadata_and_the_idempotency_key(rig):
    """Mend 3.1."""
    first = await rig.client.post(JOBS, json=body(metadata={"who": "one"}))
    joined = await rig.client.post(
        JOBS, json=body(metadata={"also": 2}), headers={"Idempotency-Key": "k"}
    )
    assert (first.json()["id"], joined.status_code) == ("a", 202)
    assert joined.json()["metadata"] == {"who": "one", "also": 2}
    without_id = {k: v for k, v in body().items() if k != "musetalk_job_id"}
    later = await rig.client.post(JOBS, json=without_id, headers={"Idempotency-Key": "k"})
    assert later.json()["id"] == "a"


async def test_the_webhook_of_who_joins_a_job_comes(tmp_path):
    """Mend 3.1: to both targets, once, each with the metadata that came with it."""
    with listening() as first, listening() as second:
        async with job_door(tmp_path, environment=WEBHOOKS_ON) as rig, delivering(rig.door):
            for target, who in ((first, "one"), (second, "two"), (second, "two")):
                entered = body(webhook_url=target.url, metadata={"who": who})
                assert (await rig.client.post(JOBS, json=entered)).status_code == 202
            await rig.service.run_next()
            assert len(await _settled(rig, "delivered")) == 2
        for target, who in ((first, "one"), (second, "two")):
            [got] = target.got
            event = Webhook(WEBHOOKS_ON["WEBHOOK_SECRET"]).verify(got.body, got.headers)
            assert event["type"] == "avatar.job.succeeded"
            assert (event["data"]["id"], event["data"]["metadata"]) == ("a", {"who": who})
            assert event["data"]["output_url"].startswith("http")


async def test_a_webhook_that_was_given_up_is_sent_again_by_one_call(tmp_path):
    document = ingress_document()
    with listening() as target:
        target.answers.append((410, {}))
        async with job_door(tmp_path, environment=WEBHOOKS_ON) as rig, delivering(rig.door):
            sent = body(webhook_url=f"{target.url}/hooks/secret-of-the-client")
            await rig.client.post(JOBS, json=sent)
            await rig.client.delete(f"{JOBS}/a")
            [given_up] = await _settled(rig, "failed")
            assert [told["code"] for told in given_up["log"]] == [410]
            assert given_up["target"] == target.url and "secret" not in json.dumps(given_up)
            again = await rig.client.post(f"{JOBS}/a/deliveries/{given_up['id']}/retry")
            assert (again.status_code, again.json()["status"]) == (200, "pending")
            document.check(again)
            [delivered] = await _settled(rig, "delivered")
            document.check(await rig.client.get(f"{JOBS}/a/deliveries"))
            for path in ("a/deliveries/evt_0/retry", "b/deliveries/evt_0/retry"):
                unknown = await rig.client.post(f"{JOBS}/{path}")
                document.check(unknown)
                assert unknown.status_code == 404
            assert (await rig.client.get(f"{JOBS}/b/deliveries")).json()["code"] == "job_not_found"
        assert [got.headers["webhook-id"] for got in target.got] == [delivered["id"]] * 2
        assert target.got[0].body == target.got[1].body


async def _settled(rig: Rig, status: str) -> list[dict[str, Any]]:
    """Wait until all webhooks of the job `a` have a status, and return their log."""
    found: list[dict[str, Any]] = []

    async def is_settled() -> bool:
        found[:] = (await rig.client.get(f"{JOBS}/a/deliveries")).json()["deliveries"]
        return bool(found) and all(one["status"] == status for one in found)

    await until_async(is_settled, f"the webhooks are not {status}")
    return found


async def test_a_job_says_its_place_and_the_time_that_is_left(rig):
    """Mend 2.11."""
    for job_id in "ab":
        await rig.client.post(JOBS, json=body(job_id))
    waiting = (await rig.client.get(f"{JOBS}/b")).json()["progress"]
    assert (waiting["queue_position"], waiting["eta_s"]) == (2, None)
    await rig.service.run_next()
    done = (await rig.client.get(f"{JOBS}/a")).json()["progress"]
    assert (done["queue_position"], done["eta_s"]) == (None, None)
    assert (await rig.client.get(f"{JOBS}/b")).json()["progress"]["queue_position"] == 1


async def test_a_list_is_given_in_pages_of_bounded_size(rig):
    """Mend 4.3: whatever callers stored, an answer stays about a megabyte."""
    metadata = {str(n): "x" * 250 for n in range(60)}  # nearly as much as one job may have
    for n in range(90):
        answer = await rig.client.post(JOBS, json=body(f"job{n}", metadata=metadata))
        assert answer.status_code == 202, answer.text
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 200} | ({} if cursor is None else {"cursor": cursor})
        answer = await rig.client.get(JOBS, params=params)
        assert len(answer.content) < 1_100_000
        seen += [job["id"] for job in answer.json()["jobs"]]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            break
    assert seen == [f"job{n}" for n in reversed(range(90))]


async def test_the_queues_own_id_travels_with_the_attempt(rig):
    """Mend 1.17: the stages write it into the sidecar."""
    await rig.service.submit(request(), Origin.SYNC, SubmissionOptions(queue_job_id="salad-7"))
    await rig.service.run_next()
    [work] = rig.graph.ran
    assert Attempt.of(work).queue_job_id == "salad-7"


async def test_a_folder_of_results_that_stalls_holds_up_no_other_answer(rig, tmp_path):
    go_on, is_stalled = threading.Event(), threading.Event()

    class Stalling(LocalStore):
        def resolve(self, key: str) -> None:
            is_stalled.set()
            go_on.wait(60.0)

    rig.door.change(files=Stalling(tmp_path))
    asked = asyncio.create_task(rig.client.get("/files/a~b.mp4"))
    assert await asyncio.to_thread(is_stalled.wait, 60.0)
    assert (await rig.client.get(f"{JOBS}/unknown")).status_code == 404
    assert not asked.done()
    go_on.set()
    assert (await asked).status_code == 404
