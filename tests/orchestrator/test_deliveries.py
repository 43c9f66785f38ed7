"""Webhooks of the service, over real sockets, and the log of their deliveries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from orchestrator.__main__ import main
from orchestrator.store.delivery_values import Try
from orchestrator.webhooks.sender import client_secret
from tests.contract.webhook_target import Delivery, Target, listening
from tests.orchestrator.databases import RULES, Bench, new_job, open_bench
from tests.orchestrator.running import (
    ADMIN_KEY,
    DONE,
    Running,
    assert_error,
    running_service,
)
from tests.waiting import until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ON = {"WEBHOOK_SECRET": SECRET, "ORCHESTRATOR_WEBHOOK_HOSTS": "127.0.0.1"}


@pytest.fixture
def target() -> Iterator[Target]:
    with listening() as receiver:
        yield receiver


@contextmanager
def sending(database_url: str, **variables: str) -> Iterator[Running]:
    with running_service(open_bench(database_url, RULES), **ON | variables) as running:
        yield running


@pytest.fixture
def service(database_url: str) -> Iterator[Running]:
    with sending(database_url) as running:
        yield running


def log_of(service: Running, job_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.admin.get(f"/v1/avatar/jobs/{job_id}/deliveries").json()[
        "deliveries"
    ]
    return found


def ended(service: Running, job_id: str, status: str, count: int = 1) -> dict[str, Any]:
    """Wait until so many tries are in the log of a job's only delivery, and return it."""

    def is_ended() -> bool:
        [one] = log_of(service, job_id)
        return one["status"] == status and len(one["log"]) >= count

    until(is_ended, f"the delivery is not {status}")
    return log_of(service, job_id)[0]


def verified(got: Delivery, client: str = "admin") -> dict[str, Any]:
    """Check a signature as a client does, and return the event."""
    event: dict[str, Any] = Webhook(client_secret(SECRET, client)).verify(got.body, got.headers)
    return event


def finish(service: Running, job_id: str) -> None:
    job = service.claim()
    assert job is not None
    assert service.report(job_id, **DONE, attempt=job["attempt"]).status_code == 200


def test_the_end_of_a_job_is_sent_signed_and_is_in_the_log(
    service: Running, target: Target
) -> None:
    hook = f"{target.url}/hooks/token-of-the-client?key=secret"
    service.submit("job-1", webhook_url=hook, metadata={"order": 7})
    finish(service, "job-1")
    delivery = ended(service, "job-1", "delivered")
    [got] = target.got
    event = verified(got)
    assert (event["type"], event["data"]["metadata"]) == ("avatar.job.succeeded", {"order": 7})
    assert event["data"]["output_url"] == DONE["output_url"]
    assert event["data"]["status"] == "succeeded"
    assert b"signature=s" not in got.body
    assert delivery["id"] == got.headers["webhook-id"]
    assert [(told["code"], told["error"]) for told in delivery["log"]] == [(204, None)]
    assert delivery["next_try_at"] is None
    assert "token-of" not in json.dumps(delivery) and "secret" not in json.dumps(delivery)


def test_each_client_has_a_secret_of_its_own(
    service: Running, target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    with service.caller(service.bench.store.add_key("client", "shop")) as shop:
        body = {"video_url": "http://m/v", "audio_url": "http://m/a", "webhook_url": target.url}
        job_id = shop.post("/v1/avatar/jobs", json=body).json()["id"]
        shop.delete(f"/v1/avatar/jobs/{job_id}")
        until(lambda: len(target.got) == 1, "the webhook has not come")
        assert verified(target.got[0], "shop")["type"] == "avatar.job.cancelled"
        for other in ("admin", "shop2"):
            with pytest.raises(WebhookVerificationError):
                verified(target.got[0], other)
        assert len(shop.get(f"/v1/avatar/jobs/{job_id}/deliveries").json()["deliveries"]) == 1
    with service.caller(service.bench.store.add_key("client", "other")) as other_client:
        url = f"/v1/avatar/jobs/{job_id}/deliveries"
        assert_error(other_client.get(url), 404, "job_not_found")
        retry = other_client.post(f"{url}/{target.got[0].headers['webhook-id']}/retry")
        assert_error(retry, 404, "job_not_found")


def test_the_end_of_a_batch_is_told_once_to_the_client_whose_it_is(
    service: Running, target: Target
) -> None:
    with service.caller(service.bench.store.add_key("client", "shop")) as shop:
        fields = {"video_url": "https://m/v.mp4", "audio_url": "https://m/a.wav"}
        jobs = [{"musetalk_job_id": name, **fields} for name in ("b-1", "b-2")]
        sent = {"jobs": jobs, "webhook_url": target.url, "metadata": {"campaign": "spring"}}
        made = shop.post("/v1/avatar/batches", json=sent)
        assert made.status_code == 202, made.text
        finish(service, "b-1")
        service.wake_deliveries()
        # A delivery that is taken notices ended batches first, so this one is not told too soon.
        service.submit("other", webhook_url=f"{target.url}/other")
        service.admin.delete("/v1/avatar/jobs/other")
        ended(service, "other", "delivered")
        assert [got.path for got in target.got] == ["/other"]
        finish(service, "b-2")
        until(lambda: len(target.got) == 2, "the end of the batch was not told")
        event = verified(target.got[1], "shop")
        shown = shop.get(f"/v1/avatar/batches/{made.json()['id']}").json()
    assert event["type"] == "avatar.batch.succeeded"
    assert event["data"] == shown
    assert shown["counts"]["succeeded"] == 2 and shown["metadata"] == {"campaign": "spring"}
    assert target.got[1].headers["webhook-id"] == f"evt_{shown['id']}"
    assert [log_of(service, name) for name in ("b-1", "b-2")] == [[], []]


def test_the_command_line_prints_a_clients_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/orchestrator.db")
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    assert main(["keys", "webhook-secret", "shop"]) == 0
    assert capsys.readouterr().out.strip() == client_secret(SECRET, "shop")
    monkeypatch.delenv("WEBHOOK_SECRET")
    assert main(["keys", "webhook-secret", "shop"]) == 1


@pytest.mark.slow
def test_a_target_that_fails_is_tried_again_and_given_up_and_sent_again_by_one_call(
    service: Running, target: Target
) -> None:
    target.answers.extend([(500, {}), (302, {"Location": target.url})] + [(503, {})] * 5)
    service.submit("job/1", webhook_url=target.url)
    service.admin.delete("/v1/avatar/jobs/job/1")
    for tries in range(1, 7):
        waiting = ended(service, "job/1", "pending", tries)
        assert waiting["next_try_at"] is not None
        service.bench.age(18000 * 1.2 if tries == 6 else 2200.0 * tries)
        service.wake_deliveries()
    given_up = ended(service, "job/1", "failed", 7)
    assert [told["code"] for told in given_up["log"]] == [500, 302, 503, 503, 503, 503, 503]
    assert len({got.headers["webhook-id"] for got in target.got}) == 1
    url = f"/v1/avatar/jobs/job%2F1/deliveries/{given_up['id']}/retry"
    assert service.admin.post(url).json()["status"] == "pending"
    assert ended(service, "job/1", "delivered", 8)["log"][-1]["code"] == 204
    assert verified(target.got[-1])["data"] == verified(target.got[0])["data"]
    metrics = service.admin.get("/metrics").text
    for result, tries in (("waiting", 6), ("given_up", 1), ("delivered", 1)):
        assert f'orchestrator_deliveries_total{{result="{result}"}} {tries}.0' in metrics
    unknown = service.admin.post("/v1/avatar/jobs/job/1/deliveries/evt_0/retry")
    assert_error(unknown, 404, "delivery_not_found")


def test_the_operator_sends_a_webhook_again_from_the_jobs_page(
    service: Running, target: Target
) -> None:
    service.submit("job-1", webhook_url=target.url)
    finish(service, "job-1")
    delivery_id = ended(service, "job-1", "delivered")["id"]
    with httpx.Client(base_url=service.url, follow_redirects=True) as browser:
        browser.post("/sign-in", data={"key": ADMIN_KEY})
        page = browser.get("/job?id=job-1").text
        assert "Send again" in page
        [token] = set(re.findall(r'name="token" value="(\w+)"', page))
        form = {"token": token, "id": "job-1", "delivery": delivery_id}
        assert "is sent again" in browser.post("/do/deliver", data=form).text
        until(lambda: len(target.got) == 2, "the webhook has not come again")
        assert {got.headers["webhook-id"] for got in target.got} == {delivery_id}
        unknown = browser.post("/do/deliver", data=form | {"delivery": "none"}).text
        assert "no such delivery" in unknown


def test_a_target_that_is_gone_is_not_tried_again(service: Running, target: Target) -> None:
    target.answers.append((410, {}))
    service.submit("job-1", webhook_url=target.url)
    service.admin.delete("/v1/avatar/jobs/job-1")
    assert ended(service, "job-1", "failed")["log"][0]["code"] == 410


def test_the_event_of_an_end_stays_as_it_was_when_the_job_is_queued_again(
    service: Running, target: Target
) -> None:
    target.answers.append((500, {}))
    service.submit("job-1", webhook_url=target.url)
    service.admin.delete("/v1/avatar/jobs/job-1")
    ended(service, "job-1", "pending")
    service.admin.post("/v1/avatar/jobs/job-1/retry")
    service.bench.age(10.0)
    service.wake_deliveries()
    ended(service, "job-1", "delivered", 2)
    assert verified(target.got[1])["data"]["status"] == "cancelled"
    finish(service, "job-1")
    until(lambda: len(target.got) == 3, "the second end was not sent")
    assert verified(target.got[2])["data"]["status"] == "succeeded"
    assert [one["event"] for one in log_of(service, "job-1")] == [
        "avatar.job.cancelled",
        "avatar.job.succeeded",
    ]


@pytest.mark.slow
def test_who_joins_a_job_is_told_too_with_metadata_of_its_own(
    service: Running, target: Target
) -> None:
    service.submit("job-1", webhook_url=f"{target.url}/a", metadata={"of": "a"})
    service.submit("job-1", webhook_url=f"{target.url}/b", metadata={"of": "b"})
    service.submit("job-1", webhook_url=f"{target.url}/b")
    finish(service, "job-1")
    until(lambda: len(target.got) == 2, "both were to be told")
    told = {got.path: verified(got)["data"]["metadata"]["of"] for got in target.got}
    assert told == {"/a": "a", "/b": "b"}
    service.submit("job-1", webhook_url=f"{target.url}/late")  # it has ended
    service.wake_deliveries()
    until(lambda: len(target.got) == 3, "the late one was to be told")
    for number in range(13):
        service.submit("job-1", webhook_url=f"{target.url}/{number}")
    fields = {
        "video_url": "https://media.example/v.mp4",
        "audio_url": "https://media.example/a.wav",
    }
    body = {"musetalk_job_id": "job-1", **fields, "webhook_url": f"{target.url}/one-more"}
    assert_error(service.admin.post("/v1/avatar/jobs", json=body), 409, "too_many_webhooks")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2/",
        "http://10.1.2.3/hook",
        "http://169.254.169.254/latest",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "https://user:pass@example.com/",
    ],
)
def test_a_target_inside_a_network_is_refused(service: Running, url: str) -> None:
    body = {"video_url": "http://m/v", "audio_url": "http://m/a", "webhook_url": url}
    assert_error(service.admin.post("/v1/avatar/jobs", json=body), 422, "webhook_refused")
    assert service.admin.get("/v1/avatar/jobs").json()["jobs"] == []


def test_without_a_secret_webhooks_are_refused(shared_service: Running) -> None:
    body = {"video_url": "http://m/v", "audio_url": "http://m/a", "webhook_url": "http://m/h"}
    assert_error(shared_service.admin.post("/v1/avatar/jobs", json=body), 422, "webhooks_off")


def test_a_target_is_checked_again_when_it_is_sent_to(database_url: str, target: Target) -> None:
    """A name may lead somewhere else by then; here, the operator trusts the host no more."""
    bench = open_bench(database_url, RULES)
    bench.store.submit(new_job("job-1", webhook_url=target.url))
    bench.store.cancel("job-1")
    bench.store.close()
    with sending(database_url, ORCHESTRATOR_WEBHOOK_HOSTS="") as service:
        told = ended(service, "job-1", "failed")["log"][0]
    assert told["error"] == "the host has a loopback address."
    assert target.got == []


@pytest.mark.slow
def test_deliveries_survive_a_restart_and_two_processes_send_each_once(
    database_url: str, target: Target
) -> None:
    bench = open_bench(database_url, RULES)
    for number in range(20):
        bench.store.submit(new_job(f"job-{number}", webhook_url=target.url))
        bench.store.cancel(f"job-{number}")
    bench.store.close()
    with sending(database_url) as one, sending(database_url) as other:
        for service in (one, other):
            service.wake_deliveries()
        until(lambda: len(target.got) >= 20, "not all were sent")
        for number in range(20):
            ended(one, f"job-{number}", "delivered")
    assert len({got.headers["webhook-id"] for got in target.got}) == len(target.got) == 20


def test_the_result_of_a_try_counts_only_if_nobody_has_taken_it_since(bench: Bench) -> None:
    store = bench.store
    store.submit(new_job("job-1", webhook_url="https://hooks.example/"))
    store.cancel("job-1")
    first = store.take_delivery(35.0)
    assert first is not None
    assert store.take_delivery(35.0) is None  # it is leased
    bench.age(36.0)  # its process has died
    second = store.take_delivery(35.0)
    assert second is not None
    assert (second.id, second.tries) == (first.id, 2)
    assert not store.settle_delivery(first, Try(200), None)
    assert store.settle_delivery(second, Try(200), None)
    assert store.seconds_to_next_delivery() is None
    [log] = store.deliveries("job-1")
    assert (log.status, [told.code for told in log.log]) == ("delivered", [200])
