"""Signed webhooks over real sockets: delivered, kept, tried again, given up, refused."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from musetalk_pipeline.errors import SourceRefused
from orchestrator.net.connections import Network
from orchestrator.webhooks.posting import signing_key
from orchestrator.webhooks.rules import DeliveryRules
from serve_app.net.addresses import AddressPolicy, IpAddress
from serve_app.webhooks.events import Event, EventStore
from serve_app.webhooks.sender import WebhookSender
from tests.contract.fake_orchestrator import TlsFiles
from tests.contract.webhook_target import Target, listening
from tests.threads import threads_taken
from tests.waiting import until_async

# The secret of the scheme's own examples.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
QUICK = DeliveryRules(pauses_s=(0.01, 0.01, 0.01), timeout_s=20.0)
OPEN = AddressPolicy(frozenset({"127.0.0.1"}))


@pytest.fixture
def target() -> Iterator[Target]:
    with listening() as receiver:
        yield receiver


def event(url: str, number: int = 1) -> Event:
    data = {"id": f"job-{number}", "status": "succeeded", "note": "größer"}
    happened = datetime(2026, 3, 1, 12, 30, 15, 250000, tzinfo=UTC)
    return Event(f"msg_job-{number}_succeeded", "avatar.job.succeeded", url, data, happened)


@contextlib.asynccontextmanager
async def delivering(
    path: Path, rules: DeliveryRules = QUICK, **options: Any
) -> AsyncIterator[WebhookSender]:
    """Run a sender; end and close it afterwards."""
    sender = WebhookSender(path, SECRET, **{"policy": OPEN, "rules": rules, **options})
    delivery = asyncio.create_task(sender.deliver_forever())
    try:
        yield sender
    finally:
        delivery.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await delivery
        sender.close()


async def all_sent(sender: WebhookSender) -> None:
    await until_async(lambda: sender.pending() == 0, "not all webhooks were sent")


async def settled(sender: WebhookSender, now: float) -> None:
    """Wait until a try is settled. Until then its lease is what the event is due at."""
    await until_async(
        lambda: (sender._store.next_due() or 0.0) - now != QUICK.lease_s,
        "the lease was not given back",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "webhooks.sqlite3"


# Delivered ---------------------------------------------------------------------------------------


async def test_an_event_arrives_signed_by_the_standard_scheme(target: Target, path: Path) -> None:
    async with delivering(path) as sender:
        assert await sender.enqueue(event(target.url + "/hook?token=abc"))
        await all_sent(sender)
    (got,) = target.got
    assert got.path == "/hook?token=abc"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == "msg_job-1_succeeded"
    assert Webhook(SECRET).verify(got.body, got.headers) == {
        "type": "avatar.job.succeeded",
        "timestamp": "2026-03-01T12:30:15.250000Z",
        "data": {"id": "job-1", "status": "succeeded", "note": "größer"},
    }


@pytest.mark.parametrize("spoilt", ["body", "id", "timestamp", "secret"])
async def test_the_signature_covers_id_time_and_body(
    target: Target, path: Path, spoilt: str
) -> None:
    async with delivering(path) as sender:
        await sender.enqueue(event(target.url))
        await all_sent(sender)
    (got,) = target.got
    headers, body, secret = dict(got.headers), got.body, SECRET
    match spoilt:
        case "body":
            body = body.replace(b"succeeded", b"failed")
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
        async with delivering(path, network=trusting) as sender:
            await sender.enqueue(event(target.url))
            await all_sent(sender)
        assert len(target.got) == 1
        async with delivering(path) as sender:  # knows the public authorities only
            await sender.enqueue(event(target.url, 2))
            await all_sent(sender)
        assert len(target.got) == 1


async def test_the_same_event_is_kept_once(target: Target, path: Path) -> None:
    sender = WebhookSender(path, SECRET, policy=OPEN)
    await sender.enqueue(event(target.url))
    await sender.enqueue(event(target.url))
    assert sender.pending() == 1
    sender.close()


# Tried again, given up ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 400, 404, 408, 429, 500, 503])
async def test_a_refused_event_is_tried_again_under_the_same_id(
    target: Target, path: Path, status: int
) -> None:
    target.answers.extend([(status, {"Location": target.url}), (status, {})])
    async with delivering(path) as sender:
        await sender.enqueue(event(target.url))
        await all_sent(sender)
    assert [got.status for got in target.got] == [status, status, 204]
    assert len({got.headers["webhook-id"] for got in target.got}) == 1
    assert len({got.body for got in target.got}) == 1


async def test_each_try_is_signed_with_its_own_time(target: Target, path: Path) -> None:
    """A receiver refuses timestamps older than five minutes, and tries go on for hours."""
    now = [1_800_000_000.0]
    target.answers.append((500, {}))
    rules = replace(QUICK, pauses_s=(3600.0,))
    async with delivering(path, rules, clock=lambda: now[0]) as sender:
        await sender.enqueue(event(target.url))
        await until_async(lambda: len(target.got) == 1, "no webhook came")
        await settled(sender, now[0])
        now[0] += 2 * 3600.0
    async with delivering(path, rules, clock=lambda: now[0]) as sender:
        await all_sent(sender)
    first, second = (int(got.headers["webhook-timestamp"]) for got in target.got)
    assert second - first == 2 * 3600


async def test_tries_are_bounded_in_number(
    target: Target, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target.answers.extend([(500, {})] * 100)
    async with delivering(path) as sender:
        await sender.enqueue(event(target.url))
        await all_sent(sender)
    assert len(target.got) == 1 + len(QUICK.pauses_s)
    assert "webhook given up" in caplog.text


async def test_tries_are_bounded_in_time(target: Target, path: Path) -> None:
    target.answers.extend([(500, {})] * 100)
    rules = replace(QUICK, pauses_s=(10.0,) * 100, max_age_s=5.0)
    async with delivering(path, rules) as sender:
        await sender.enqueue(event(target.url))
        await all_sent(sender)
    assert len(target.got) == 1


async def test_a_try_that_fails_unexpectedly_counts_like_any_other(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mend 3.8: here the certificates are missing, which no part of a delivery expects."""
    network = Network(ca_file=path.with_name("missing.pem"))
    async with delivering(path, network=network) as sender:
        await sender.enqueue(event("https://127.0.0.1:9/hook"))
        await all_sent(sender)
    tries = [record for record in caplog.records if record.getMessage() == "webhook failed"]
    assert len(tries) == 1 + len(QUICK.pauses_s)
    assert "webhook given up" in caplog.text


async def test_an_unexpected_failure_obeys_the_age_of_its_event(path: Path) -> None:
    """Mend 3.8."""
    rules = replace(QUICK, pauses_s=(10.0,) * 100, max_age_s=5.0)
    network = Network(ca_file=path.with_name("missing.pem"))
    async with delivering(path, rules, network=network) as sender:
        await sender.enqueue(event("https://127.0.0.1:9/hook"))
        await all_sent(sender)


async def test_threads_that_are_all_taken_hold_up_no_webhook(target: Target, path: Path) -> None:
    with threads_taken():
        async with asyncio.timeout(10.0), delivering(path) as sender:
            await sender.enqueue(event(target.url))
            await all_sent(sender)
    assert len(target.got) == 1


async def test_a_full_disk_is_named_and_the_file_goes_on_to_be_used(path: Path) -> None:
    """SQLite has rolled back by itself then, and a second time would be the error that is seen."""
    store = EventStore(path, QUICK, lambda: 1000.0)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.add("evt_1", "http://h/hook", "x" * 100_000)
    store._db.execute("PRAGMA max_page_count = 10000")
    assert store.add("evt_1", "http://h/hook", "{}")
    assert store.count() == 1
    store.close()


async def test_tries_that_end_with_their_process_are_counted_too(
    target: Target, path: Path
) -> None:
    """Mend 3.8."""
    now = [1000.0]
    store = EventStore(path, QUICK, lambda: now[0])
    assert store.add("evt_1", target.url, "{}")
    for _ in range(1 + len(QUICK.pauses_s)):
        assert store.take() is not None  # and the process dies
        now[0] += QUICK.lease_s + 1
    store.close()
    async with delivering(path, clock=lambda: now[0]) as sender:
        await all_sent(sender)
    assert target.got == []


async def test_410_ends_the_tries_at_once(target: Target, path: Path) -> None:
    target.answers.append((410, {}))
    async with delivering(path) as sender:
        await sender.enqueue(event(target.url))
        await all_sent(sender)
    assert len(target.got) == 1


@pytest.mark.parametrize(
    ("retry_after", "expected_s"), [("600", 600.0), ("999999999999", 3600.0), ("soon", 0.01)]
)
async def test_retry_after_is_honoured_within_bounds(
    target: Target, path: Path, retry_after: str, expected_s: float
) -> None:
    now = 1_800_000_000.0
    target.answers.append((429, {"Retry-After": retry_after}))
    async with delivering(path, clock=lambda: now) as sender:
        await sender.enqueue(event(target.url))
        await until_async(lambda: len(target.got) == 1, "no webhook came")
        await settled(sender, now)
        due = sender._store.next_due()
    assert due is not None
    assert due - now == pytest.approx(expected_s, rel=0.21)


async def test_a_silent_target_costs_one_deadline_and_holds_up_nobody(
    target: Target, path: Path
) -> None:
    rules = replace(QUICK, timeout_s=0.2, pauses_s=(0.01,))
    with listening() as silent:
        silent.stalls = 2
        async with delivering(path, rules) as sender:
            await sender.enqueue(event(silent.url, 1))
            await sender.enqueue(event(target.url, 2))
            await all_sent(sender)
    # A try of the second may have been given up as well, on a machine with much else to do.
    assert {got.headers["webhook-id"] for got in target.got} == {"msg_job-2_succeeded"}
    assert silent.got == []


async def test_nobody_listening_is_a_failed_try(path: Path) -> None:
    async with delivering(path) as sender:
        await sender.enqueue(event("http://127.0.0.1:1/"))
        await all_sent(sender)


# Kept --------------------------------------------------------------------------------------------


async def test_events_survive_a_restart(target: Target, path: Path) -> None:
    before = WebhookSender(path, SECRET, policy=OPEN)
    for number in range(5):
        await before.enqueue(event(target.url, number))
    before.close()
    async with delivering(path) as after:
        await all_sent(after)
    assert {got.headers["webhook-id"] for got in target.got} == {
        f"msg_job-{number}_succeeded" for number in range(5)
    }


async def test_an_event_under_way_when_the_process_dies_is_tried_again_after_its_lease(
    target: Target, path: Path
) -> None:
    now = [1_800_000_000.0]
    dead = WebhookSender(path, SECRET, policy=OPEN, rules=QUICK, clock=lambda: now[0])
    await dead.enqueue(event(target.url))
    assert dead._store.take() is not None
    assert dead._store.take() is None  # nobody else gets it meanwhile
    dead.close()
    now[0] += QUICK.lease_s + 1.0
    async with delivering(path, clock=lambda: now[0]) as sender:
        await all_sent(sender)
    assert len(target.got) == 1


async def test_two_processes_on_one_file_deliver_each_event_once(
    target: Target, path: Path
) -> None:
    async with delivering(path) as first, delivering(path) as second:
        for number in range(30):
            await (first if number % 2 else second).enqueue(event(target.url, number))
        await all_sent(first)
    assert len(target.got) == len({got.headers["webhook-id"] for got in target.got}) == 30


async def test_a_full_queue_drops_the_newest_and_says_so(
    target: Target, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = replace(QUICK, capacity=2)
    sender = WebhookSender(path, SECRET, policy=OPEN, rules=rules)
    stored = [await sender.enqueue(event(target.url, number)) for number in range(3)]
    assert stored == [True, True, False]
    assert sender.pending() == 2
    assert "queue is full" in caplog.text
    sender.close()


def test_the_file_is_the_owners_alone(path: Path) -> None:
    async def make() -> None:
        WebhookSender(path, SECRET, policy=OPEN).close()

    asyncio.run(make())
    assert path.stat().st_mode & 0o077 == 0


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
    sender = WebhookSender(path, SECRET, policy=AddressPolicy())
    with pytest.raises(SourceRefused):
        await sender.check_target(url)
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
    async with delivering(path, policy=AddressPolicy(), network=network) as sender:
        await sender.check_target(f"http://hooks.example:{port}/")
        found[0] = [ipaddress.ip_address("127.0.0.1")]
        await sender.enqueue(event(f"http://hooks.example:{port}/"))
        await all_sent(sender)
    assert target.got == []
    assert "webhook given up" in caplog.text


async def test_the_judged_address_is_the_one_connected_to(target: Target, path: Path) -> None:
    """The name itself resolves nowhere: only the pinned address can have been used."""

    async def resolve(host: str, port: int) -> list[IpAddress]:
        return [ipaddress.ip_address("127.0.0.1")]

    port = target.url.rpartition(":")[2]
    policy = AddressPolicy(frozenset({"hooks.invalid"}))
    async with delivering(path, policy=policy, network=Network(resolve=resolve)) as sender:
        await sender.enqueue(event(f"http://hooks.invalid:{port}/x"))
        await all_sent(sender)
    (got,) = target.got
    assert got.headers["host"] == f"hooks.invalid:{port}"


async def test_a_name_that_does_not_resolve_yet_is_accepted(path: Path) -> None:
    async def resolve(host: str, port: int) -> list[IpAddress]:
        raise OSError("no such name")

    sender = WebhookSender(path, SECRET, policy=AddressPolicy(), network=Network(resolve=resolve))
    await sender.check_target("https://soon.example/")
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
    async with delivering(path) as sender:
        one = event(target.url + "/hook?token=target-token")
        await sender.enqueue(one)
        await all_sent(sender)
        texts = [caplog.text, repr(one), repr(sender), json.dumps(str(vars(sender)))]
        texts += [str(vars(record)) for record in caplog.records]
    for hidden in ("target-token", SECRET.removeprefix("whsec_")):
        assert not any(hidden in text for text in texts), hidden
