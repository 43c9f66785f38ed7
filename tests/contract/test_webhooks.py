"""Signed webhooks over real sockets: delivered, kept, tried again, given up, refused.

The jobs are those of an ingress; tests/orchestrator/test_deliveries.py has those of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from orchestrator.net.addresses import AddressPolicy, AddressRefused, IpAddress
from orchestrator.net.connections import DEFAULT_NETWORK, Network
from orchestrator.store.delivery_values import TakenDelivery
from orchestrator.webhooks.posting import Poster, signing_key
from orchestrator.webhooks.rules import DeliveryRules
from orchestrator.webhooks.sender import DeliveryLoop
from serve_app.api.answers import job_body
from serve_app.contract.requests import JobRequest
from serve_app.jobs.job import Origin, SubmissionOptions
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.rows import job_of
from serve_app.jobs.state_file import StateThreads
from tests.contract.fake_orchestrator import TlsFiles
from tests.contract.webhook_target import Target, listening
from tests.threads import threads_taken
from tests.waiting import until_async

# The secret of the scheme's own examples.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
QUICK = DeliveryRules(pauses_s=(0.01, 0.01, 0.01), timeout_s=20.0)
OPEN = AddressPolicy(frozenset({"127.0.0.1"}))


class Sender:
    """What delivers the webhooks of the jobs in a registry."""

    def __init__(
        self,
        path: Path,
        rules: DeliveryRules = QUICK,
        *,
        policy: AddressPolicy = OPEN,
        network: Network = DEFAULT_NETWORK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = JobRegistry(path, clock)
        key = signing_key(SECRET)
        self.loop = DeliveryLoop(
            self.registry,
            StateThreads(self.registry.file).write,
            Poster(policy, rules.timeout_s, network=network, clock=clock),
            lambda client: key,
            self._data_of,
            rules,
        )
        self.taken: list[TakenDelivery] = []  # for each try

    def _data_of(self, taken: TakenDelivery) -> dict[str, Any]:
        self.taken.append(taken)
        return job_body(job_of(taken.snapshot))

    def end_a_job(self, url: str, number: int = 1) -> None:
        """End a job that has a webhook."""
        job_id = f"job-{number}"
        job = JobRequest(musetalk_job_id=job_id, video_url="https://m/v", audio_url="https://m/a")
        options = SubmissionOptions(url, {"note": "größer"})
        self.registry.submit(job, Origin.ASYNC, 1000, options)
        self.registry.cancel(job_id)
        self.loop.wake()

    async def given_up(self, caplog: pytest.LogCaptureFixture) -> None:
        """Wait until that is in the log, which follows its end in the file."""
        await until_async(lambda: "webhook given up" in caplog.text, "no webhook was given up")

    async def all_sent(self) -> None:
        """Wait until no webhook waits."""
        is_done = lambda: self.registry.seconds_to_next_delivery() is None  # noqa: E731
        await until_async(is_done, "not all webhooks were sent")

    async def settled(self) -> None:
        """Wait until a try is settled. Until then its lease is what it is due at; time stands still
        meanwhile.
        """
        await until_async(
            lambda: self.registry.seconds_to_next_delivery() != QUICK.lease_s,
            "the lease was not given back",
        )

    def close(self) -> None:
        self.registry.close()


@contextlib.asynccontextmanager
async def delivering(sender: Sender) -> AsyncIterator[Sender]:
    """Let a sender deliver; end and close it afterwards."""
    delivery = asyncio.create_task(sender.loop.deliver_forever())
    try:
        yield sender
    finally:
        delivery.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await delivery
        sender.close()


@pytest.fixture
def target() -> Iterator[Target]:
    with listening() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty registry; migrating a new one takes longer than most of these tests."""
    path = tmp_path_factory.mktemp("template") / "jobs.sqlite3"
    JobRegistry(path).close()
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    path = tmp_path / "jobs.sqlite3"
    shutil.copy(template, path)
    return path


# Delivered ---------------------------------------------------------------------------------------


async def test_an_event_arrives_signed_by_the_standard_scheme(target: Target, path: Path) -> None:
    async with delivering(Sender(path)) as sender:
        sender.end_a_job(target.url + "/hook?token=abc")
        await sender.all_sent()
    (got,) = target.got
    assert got.path == "/hook?token=abc"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"].startswith("evt_")
    event = Webhook(SECRET).verify(got.body, got.headers)
    assert event["type"] == "avatar.job.cancelled"
    happened = datetime.fromisoformat(event["timestamp"])
    assert event["timestamp"].endswith("Z")
    assert abs((datetime.now(UTC) - happened).total_seconds()) < 3600
    data = event["data"]
    assert (data["id"], data["status"], data["failure"]["code"]) == (
        "job-1",
        "cancelled",
        "cancelled",
    )
    assert data["metadata"] == {"note": "größer"}


@pytest.mark.parametrize("spoilt", ["body", "id", "timestamp", "secret"])
async def test_the_signature_covers_id_time_and_body(
    target: Target, path: Path, spoilt: str
) -> None:
    async with delivering(Sender(path)) as sender:
        sender.end_a_job(target.url)
        await sender.all_sent()
    (got,) = target.got
    headers, body, secret = dict(got.headers), got.body, SECRET
    match spoilt:
        case "body":
            body = body.replace(b"cancelled", b"succeeded")
        case "id":
            headers["webhook-id"] += "2"
        case "timestamp":
            headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) - 1)
        case "secret":
            secret = "whsec_" + "A" * 32
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers)


def test_the_signature_is_the_schemes_own_example() -> None:
    """Id, time, payload and signature as published in the scheme's reference libraries."""
    signature = Webhook(signing_key(SECRET)).sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1614265330, UTC),
        '{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_over_tls_the_certificate_is_checked(tls: TlsFiles, path: Path) -> None:
    with listening(tls.server_context()) as target:
        trusting = Network(ca_file=tls.authority)
        async with delivering(Sender(path, network=trusting)) as sender:
            sender.end_a_job(target.url)
            await sender.all_sent()
        assert len(target.got) == 1
        async with delivering(Sender(path)) as sender:  # knows the public authorities only
            sender.end_a_job(target.url, 2)
            await sender.all_sent()
        assert len(target.got) == 1


# Tried again, given up ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 400, 404, 408, 429, 500, 503])
async def test_a_refused_event_is_tried_again_under_the_same_id(
    target: Target, path: Path, status: int
) -> None:
    target.answers.extend([(status, {"Location": target.url}), (status, {})])
    async with delivering(Sender(path)) as sender:
        sender.end_a_job(target.url)
        await sender.all_sent()
    assert [got.status for got in target.got] == [status, status, 204]
    assert len({got.headers["webhook-id"] for got in target.got}) == 1
    assert len({got.body for got in target.got}) == 1


async def test_each_try_is_signed_with_its_own_time(target: Target, path: Path) -> None:
    """A receiver refuses timestamps older than five minutes, and tries go on for hours."""
    now = [1_800_000_000.0]
    target.answers.append((500, {}))
    rules = replace(QUICK, pauses_s=(3600.0,))
    async with delivering(Sender(path, rules, clock=lambda: now[0])) as sender:
        sender.end_a_job(target.url)
        await until_async(lambda: len(target.got) == 1, "no webhook came")
        await sender.settled()
        now[0] += 2 * 3600.0
    async with delivering(Sender(path, rules, clock=lambda: now[0])) as sender:
        await sender.all_sent()
    first, second = (int(got.headers["webhook-timestamp"]) for got in target.got)
    assert second - first == 2 * 3600


async def test_tries_are_bounded_in_number(
    target: Target, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target.answers.extend([(500, {})] * 100)
    async with delivering(Sender(path)) as sender:
        sender.end_a_job(target.url)
        await sender.all_sent()
        await sender.given_up(caplog)
    assert len(target.got) == 1 + len(QUICK.pauses_s)


async def test_tries_are_bounded_in_time(target: Target, path: Path) -> None:
    target.answers.extend([(500, {})] * 100)
    rules = replace(QUICK, pauses_s=(10.0,) * 100, max_age_s=5.0)
    async with delivering(Sender(path, rules)) as sender:
        sender.end_a_job(target.url)
        await sender.all_sent()
    assert len(target.got) == 1


async def test_a_try_that_fails_unexpectedly_counts_like_any_other(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mend 3.8: here the certificates are missing, which no part of a delivery expects."""
    network = Network(ca_file=path.with_name("missing.pem"))
    async with delivering(Sender(path, network=network)) as sender:
        sender.end_a_job("https://127.0.0.1:9/hook")
        await sender.all_sent()
        await sender.given_up(caplog)
    tries = [record for record in caplog.records if record.getMessage() == "webhook failed"]
    assert len(tries) == 1 + len(QUICK.pauses_s)


async def test_an_unexpected_failure_obeys_the_age_of_its_event(path: Path) -> None:
    """Mend 3.8."""
    rules = replace(QUICK, pauses_s=(10.0,) * 100, max_age_s=5.0)
    network = Network(ca_file=path.with_name("missing.pem"))
    async with delivering(Sender(path, rules, network=network)) as sender:
        sender.end_a_job("https://127.0.0.1:9/hook")
        await sender.all_sent()


async def test_threads_that_are_all_taken_hold_up_no_webhook(target: Target, path: Path) -> None:
    with threads_taken():
        async with asyncio.timeout(10.0), delivering(Sender(path)) as sender:
            sender.end_a_job(target.url)
            await sender.all_sent()
    assert len(target.got) == 1


async def test_tries_that_end_with_their_process_are_counted_too(
    target: Target, path: Path
) -> None:
    """Mend 3.8."""
    now = [1_800_000_000.0]
    dead = Sender(path, clock=lambda: now[0])
    dead.end_a_job(target.url)
    for _ in range(1 + len(QUICK.pauses_s)):
        assert dead.registry.take_delivery(QUICK.lease_s) is not None  # and the process dies
        now[0] += QUICK.lease_s + 1
    dead.close()
    async with delivering(Sender(path, clock=lambda: now[0])) as sender:
        await sender.all_sent()
    assert target.got == []


async def test_410_ends_the_tries_at_once(target: Target, path: Path) -> None:
    target.answers.append((410, {}))
    async with delivering(Sender(path)) as sender:
        sender.end_a_job(target.url)
        await sender.all_sent()
    assert len(target.got) == 1


@pytest.mark.parametrize(
    ("retry_after", "expected_s"), [("600", 600.0), ("999999999999", 3600.0), ("soon", 0.01)]
)
async def test_retry_after_is_honoured_within_bounds(
    target: Target, path: Path, retry_after: str, expected_s: float
) -> None:
    now = 1_800_000_000.0
    target.answers.append((429, {"Retry-After": retry_after}))
    async with delivering(Sender(path, clock=lambda: now)) as sender:
        sender.end_a_job(target.url)
        await until_async(lambda: len(target.got) == 1, "no webhook came")
        await sender.settled()
        due_s = sender.registry.seconds_to_next_delivery()
    assert due_s == pytest.approx(expected_s, rel=0.21, abs=1e-4)


async def test_a_silent_target_costs_one_deadline_and_holds_up_nobody(
    target: Target, path: Path
) -> None:
    rules = replace(QUICK, timeout_s=0.2, pauses_s=(0.01,))
    with listening() as silent:
        silent.stalls = 2
        async with delivering(Sender(path, rules)) as sender:
            sender.end_a_job(silent.url, 1)
            sender.end_a_job(target.url, 2)
            await sender.all_sent()
    # A try of the second may have been given up as well, on a machine with much else to do.
    assert {json.loads(got.body)["data"]["id"] for got in target.got} == {"job-2"}
    assert silent.got == []


async def test_nobody_listening_is_a_failed_try(path: Path) -> None:
    async with delivering(Sender(path)) as sender:
        sender.end_a_job("http://127.0.0.1:1/")
        await sender.all_sent()


# Kept --------------------------------------------------------------------------------------------


async def test_events_survive_a_restart(target: Target, path: Path) -> None:
    before = Sender(path)
    for number in range(5):
        before.end_a_job(target.url, number)
    before.close()
    async with delivering(Sender(path)) as after:
        await after.all_sent()
    assert {json.loads(got.body)["data"]["id"] for got in target.got} == {
        f"job-{number}" for number in range(5)
    }


async def test_an_event_under_way_when_the_process_dies_is_tried_again_after_its_lease(
    target: Target, path: Path
) -> None:
    now = [1_800_000_000.0]
    dead = Sender(path, clock=lambda: now[0])
    dead.end_a_job(target.url)
    assert dead.registry.take_delivery(QUICK.lease_s) is not None
    assert dead.registry.take_delivery(QUICK.lease_s) is None  # nobody else gets it meanwhile
    dead.close()
    now[0] += QUICK.lease_s + 1.0
    async with delivering(Sender(path, clock=lambda: now[0])) as sender:
        await sender.all_sent()
    assert len(target.got) == 1


async def test_two_processes_on_one_file_deliver_each_event_once(
    target: Target, path: Path
) -> None:
    async with delivering(Sender(path)) as first, delivering(Sender(path)) as second:
        for number in range(30):
            (first if number % 2 else second).end_a_job(target.url, number)
        await first.all_sent()
    assert len(target.got) == len({got.headers["webhook-id"] for got in target.got}) == 30


# Refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/",
        "http://localhost/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://2130706433/",
        "http://user:password@example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "not an address",
        "",
    ],
)
async def test_forbidden_targets_are_refused_before_anything_is_promised(
    path: Path, url: str
) -> None:
    sender = Sender(path, policy=AddressPolicy())
    with pytest.raises(AddressRefused):
        await sender.loop.check_target(url)
    sender.close()


async def test_a_target_that_turns_inward_later_is_never_connected_to(
    target: Target, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The name resolved to a public address when it was checked, and to loopback afterwards."""
    found: list[list[IpAddress]] = [[ipaddress.ip_address("93.184.216.34")]]

    async def resolve(host: str, port: int) -> list[IpAddress]:
        return found[0]

    port = target.url.rpartition(":")[2]
    network = Network(resolve=resolve)
    async with delivering(Sender(path, policy=AddressPolicy(), network=network)) as sender:
        await sender.loop.check_target(f"http://hooks.example:{port}/")
        found[0] = [ipaddress.ip_address("127.0.0.1")]
        sender.end_a_job(f"http://hooks.example:{port}/")
        await sender.all_sent()
        await sender.given_up(caplog)
    assert target.got == []


async def test_the_judged_address_is_the_one_connected_to(target: Target, path: Path) -> None:
    """The name itself resolves nowhere: only the pinned address can have been used."""

    async def resolve(host: str, port: int) -> list[IpAddress]:
        return [ipaddress.ip_address("127.0.0.1")]

    port = target.url.rpartition(":")[2]
    policy = AddressPolicy(frozenset({"hooks.invalid"}))
    async with delivering(Sender(path, policy=policy, network=Network(resolve=resolve))) as sender:
        sender.end_a_job(f"http://hooks.invalid:{port}/x")
        await sender.all_sent()
    (got,) = target.got
    assert got.headers["host"] == f"hooks.invalid:{port}"


async def test_a_name_that_does_not_resolve_yet_is_accepted(path: Path) -> None:
    async def resolve(host: str, port: int) -> list[IpAddress]:
        raise OSError("no such name")

    sender = Sender(path, policy=AddressPolicy(), network=Network(resolve=resolve))
    await sender.loop.check_target("https://soon.example/")
    sender.close()


# Secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64!", "A" * 400, "whsec_" + "ü" * 40]
)
def test_weak_or_malformed_secrets_are_refused_without_echo(secret: str) -> None:
    with pytest.raises(ValueError, match="webhook secret must be") as caught:
        signing_key(secret)
    assert len(secret) < 8 or secret not in str(caught.value)


async def test_neither_secret_nor_target_reaches_logs_or_repr(
    target: Target, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    target.answers.append((500, {}))
    async with delivering(Sender(path)) as sender:
        sender.end_a_job(target.url + "/hook?token=target-token")
        await sender.all_sent()
        texts = [caplog.text, repr(sender.taken), repr(sender.loop), str(vars(sender.loop))]
        texts += [str(vars(record)) for record in caplog.records]
    assert len(sender.taken) == 2 and "webhook will be tried again" in caplog.text
    for hidden in ("target-token", SECRET.removeprefix("whsec_")):
        assert not any(hidden in text for text in texts), hidden
