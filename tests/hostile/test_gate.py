"""The gate in Serve's proxy: the start, who calls, bodies, capacity, peers."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from orchestrator.job_api.bodies import BodyLimits
from serve_app.gate.access_control import AccessControl, GuessLimiter
from serve_app.gate.callers import CallerRules
from serve_app.gate.middleware import INGRESS_LIMITS, Gate, GateLimits
from tests.hostile.edge import PATIENT, Inner, caller, gated, head, listening, raw
from tests.waiting import until_async

KEY = "the-key-of-callers"
LOCKED = CallerRules(ingress_api_key=KEY)
# Impatient with clients that are refused; with bodies, or with the application, too.
BRIEF = replace(PATIENT, linger_s=0.2)
HURRIED = replace(BRIEF, body=BodyLimits(grace_s=0.2, whole_s=0.5))
IMPATIENT = replace(BRIEF, first_probe_s=0.05)  # where the application is not ready


def check_rejection(body: dict[str, Any], code: str, *, retryable: bool) -> None:
    """A refusal has the shape of every error."""
    assert body["status"] == "failed" and body["code"] == code
    assert body["retryable"] is retryable
    assert body["error_message"].endswith(".") and body["hint"].endswith(".")
    assert "input" in body and "stage" in body


def split(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of a raw answer."""
    top, _, body = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)


# --- the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["absent", "silent"])
async def test_until_the_application_has_been_ready_everything_is_503(state: str) -> None:
    """Mend 1.13: neither Serve's 404 nor a request that hangs is seen from outside."""
    inner = Inner(state)
    async with gated(inner, IMPATIENT) as port, caller(port) as client:
        for path in ("/hc", "/health"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (503, {"status": "starting"})
            assert int(answer.headers["Retry-After"]) > 0
        for method, path in (("POST", "/generate"), ("GET", "/v1/avatar/jobs"), ("GET", "/files/a"),
                             ("GET", "/docs"), ("DELETE", "/v1/avatar/jobs/1")):  # fmt: skip
            answer = await client.request(method, path)
            assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
            check_rejection(answer.json(), "starting", retryable=True)
        assert {scope["path"] for scope in inner.seen} <= {"/hc", "/health"}
        inner.state = "ready"
        inner.release.set()
        await until_async(lambda: is_ok(client), "the worker was not ready")
        assert (await client.post("/generate", content=b"{}")).status_code == 200
        # Afterwards requests go through, whatever a probe says; Serve's 404 is still not shown.
        inner.state = "absent"
        assert (await client.get("/hc")).status_code == 503
        for path in ("/v1/avatar/jobs", "/files/a.mp4"):
            answer = await client.get(path)
            assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
            check_rejection(answer.json(), "unavailable", retryable=True)
        assert inner.count("/v1/avatar/jobs") == inner.count("/files/a.mp4") == 1


async def is_ok(client: Any) -> bool:
    return (await client.get("/hc")).status_code == 200


async def test_a_request_finds_out_by_itself_that_the_application_is_ready() -> None:
    """Mend 1.13: nobody has to ask for /hc first."""
    async with gated(Inner()) as port, caller(port) as client:
        assert (await client.post("/generate", content=b"{}")).status_code == 200


async def test_all_who_ask_for_health_share_one_question() -> None:
    """Mend 4.1: probes hold one place of the ingress, however many there are."""
    inner = Inner("silent")
    async with gated(inner, IMPATIENT) as port, caller(port) as client:
        answers = await asyncio.gather(*(client.get("/hc") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {503}
        assert inner.count("/hc") == 1
        inner.state = "ready"
        inner.release.set()
        await until_async(lambda: is_ok(client), "the worker was not ready")


async def test_head_of_the_probes() -> None:
    """Mend 1.17: HEAD on /hc."""
    async with gated(Inner()) as port, caller(port) as client:
        answer = await client.head("/hc")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == str(len((await client.get("/hc")).content))


# --- bodies ---------------------------------------------------------------------------------------


async def test_a_thousand_unfinished_posts_take_no_place_behind_the_gate() -> None:
    """Mend 4.1: none reaches the ingress, /hc stays 200 and whole requests are answered."""
    inner = Inner()
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(gated(inner))
        client = await stack.enter_async_context(caller(port))
        start = head("POST", "/generate", "Content-Length: 1000") + b"x" * 100
        crowd = [await stack.enter_async_context(raw(port, start)) for _ in range(1000)]
        for _ in range(10):
            assert (await client.get("/hc")).status_code == 200
            assert (await client.post("/generate", content=b"whole")).status_code == 200
        assert inner.bodies == [b"whole"] * 10
        # The oldest made room for newer ones, and were told so.
        status, body = split(await crowd[0].answer())
        assert status == 408
        check_rejection(body, "body_too_slow", retryable=True)


@pytest.mark.parametrize("bit", [b"", b"x", b"x" * 20])
async def test_a_body_that_does_not_come_is_given_up(bit: bytes) -> None:
    """Mend 3.9: a deadline, and a minimum rate before it."""
    inner = Inner()
    start = head("POST", "/generate", "Content-Length: 60000")
    async with gated(inner, HURRIED) as port, raw(port, start) as connection:
        status, body = split(await connection.dribble(bit))
        assert status == 408
        check_rejection(body, "body_too_slow", retryable=True)
    assert inner.count("/generate") == 0


async def test_a_batch_may_be_larger_and_few_are_read_at_once() -> None:
    """Bodies wait in memory, so the oldest unfinished one of too many is given up."""
    inner, path = Inner(), "/v1/avatar/batches"
    patient = BodyLimits(max_bytes=100_000, grace_s=1000, whole_s=1000, concurrent=1)
    slow = head("POST", path, "Content-Length: 60000")
    gate = Gate(inner, CallerRules(), replace(BRIEF, batch=patient), is_proxy=True)
    async with listening(gate) as port, caller(port) as client:
        assert (await client.post(path, content=bytes(90_000))).status_code == 200
        for target, n_bytes in ((path, 100_001), ("/generate", 90_000)):
            answer = await client.post(target, content=bytes(n_bytes))
            assert answer.status_code == 413 and str(n_bytes) not in answer.text
        async with raw(port, slow) as connection:
            await until_async(lambda: gate._batches._unfinished, "the body is not awaited")
            assert (await client.post(path, content=b"[]")).status_code == 200
            status, body = split(await connection.answer())
            assert status == 408
            check_rejection(body, "body_too_slow", retryable=True)
    assert [len(body) for body in inner.bodies] == [90_000, 2]


async def test_a_slow_body_within_its_deadline_is_taken() -> None:
    inner = Inner()
    limits = replace(PATIENT, body=BodyLimits(bytes_per_s=1.0))
    start = head("POST", "/generate", "Content-Length: 6", "Connection: close")
    async with gated(inner, limits) as port, raw(port, start) as connection:
        for bit in (b"ab", b"cd", b"ef"):
            await connection.send(bit)
            await asyncio.sleep(0.02)
        assert b"200 OK" in await connection.answer()
    assert inner.bodies == [b"abcdef"]


async def test_who_calls_is_asked_before_a_byte_of_the_body_is_read() -> None:
    """Mend 4.1: the key comes before the body; a client that waits for 100 never gets it."""
    inner = Inner()
    start = head("POST", "/generate", "Content-Length: 1000", "Expect: 100-continue")
    async with gated(inner, BRIEF, rules=LOCKED) as port, raw(port, start) as connection:
        answer = await connection.answer()
        assert b" 100 " not in answer
        status, body = split(answer)
        assert status == 401
        check_rejection(body, "key_missing", retryable=False)
    assert inner.seen == []


async def test_guesses_are_limited_where_clients_connect() -> None:
    """Mend 4.4, in the proxy: wrong keys never reach the ingress, which counts them too."""
    access = AccessControl(LOCKED, None, GuessLimiter(burst=2, pause_s=1000.0))
    async with gated(Inner(), rules=access) as port, caller(port) as client:

        async def status(key: str) -> int:
            answer = await client.get("/v1/avatar/jobs", headers={"X-Internal-API-Key": key})
            return answer.status_code

        assert [await status("wrong") for _ in range(4)] == [403, 403, 429, 429]
        assert await status(KEY) == 200


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_before_anybody_looks_into_it(
    is_chunked: bool,
) -> None:
    """Mend 4.3: 64 KiB, whether the length is said or counted; the client can read the answer."""
    inner = Inner()
    size = 300_000

    async def chunks() -> Any:
        for _ in range(size // 1000):
            yield b"x" * 1000

    content = chunks() if is_chunked else b"x" * size
    async with gated(inner) as port, caller(port) as client:
        answer = await client.post("/v1/avatar/jobs", content=content)
        assert answer.status_code == 413 and answer.headers["connection"] == "close"
        check_rejection(answer.json(), "body_too_large", retryable=False)
        assert (await client.post("/generate", content=b"x" * 65536)).status_code == 200
    assert [len(body) for body in inner.bodies] == [65536]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("framing", ["Content-Length: 400000000", "Transfer-Encoding: chunked"])
async def test_a_body_where_none_belongs_is_not_read(method: str, framing: str) -> None:
    """Mend 4.6: 400 at once; the connection ends, so nothing more of it is taken."""
    inner = Inner()
    async with gated(inner) as port, raw(port, head(method, "/v1/avatar/jobs", framing)) as one:
        top = await one.reader.readuntil(b"\r\n\r\n")
        assert b" 400 " in top and b"connection: close" in top.lower()
        if method != "HEAD":
            size = int(top.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = json.loads(await one.reader.readexactly(size))
            check_rejection(body, "body_not_allowed", retryable=False)
    assert inner.seen == []


# --- capacity -------------------------------------------------------------------------------------


async def test_beyond_the_capacity_requests_are_asked_to_come_back() -> None:
    """Mend 4.1: probes keep a place of their own."""
    inner = Inner()
    async with gated(inner, replace(PATIENT, forwarded=2)) as port, caller(port) as client:
        waiting = [asyncio.create_task(client.post("/wait", content=b"{}")) for _ in range(2)]
        await until_async(lambda: inner.count("/wait") == 2, "the requests did not arrive")
        answer = await client.post("/generate", content=b"{}")
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
        check_rejection(answer.json(), "busy", retryable=True)
        assert await is_ok(client)
        inner.release.set()
        assert [(await task).status_code for task in waiting] == [200, 200]
        assert (await client.post("/generate", content=b"{}")).status_code == 200


async def test_a_request_whose_replica_ends_is_answered_in_our_shape() -> None:
    """Serve sends nothing then, and uvicorn would answer in plain text."""
    inner = Inner()

    async def dying(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/hc":
            await inner(scope, receive, send)

    async with gated(dying) as port, caller(port) as client:
        for method, path in (("POST", "/generate"), ("GET", "/files/a.mp4")):
            answer = await client.request(method, path)
            assert answer.status_code == 503
            check_rejection(answer.json(), "unavailable", retryable=True)


async def test_a_full_ingress_still_answers_probes() -> None:
    """Mend 4.1: also where the gate stands before the ingress' own routes."""
    inner = Inner()
    gate = Gate(inner, CallerRules(), GateLimits(forwarded=1))
    async with listening(gate) as port, caller(port) as client:
        waiting = asyncio.create_task(client.post("/wait"))
        await inner.arrived.wait()
        assert (await client.get("/v1/avatar/jobs")).json()["code"] == "busy"
        assert await is_ok(client)
        inner.release.set()
        await waiting


def test_the_ingress_has_places_beyond_what_the_proxy_forwards() -> None:
    """Mend 4.1: for probes, file pieces and the slots' own calls."""
    from serve_app.app import MAX_HTTP

    proxy, ingress = GateLimits(), INGRESS_LIMITS
    probes, slots = 2, 64
    assert proxy.forwarded + proxy.files.readers + probes <= ingress.forwarded
    assert ingress.forwarded + probes + slots < MAX_HTTP


async def test_a_client_that_does_not_read_its_answer_loses_its_place() -> None:
    """Mend 4.2: an answer that is not taken ends with the connection."""
    inner = Inner()
    limits = replace(PATIENT, forwarded=1, send_s=0.2)
    async with (
        gated(inner, limits) as port,
        caller(port) as client,
        raw(port, head("GET", "/large"), receive_buffer=4096),
    ):
        await until_async(lambda: inner.count("/large") == 1, "the request did not arrive")

        async def is_free() -> bool:
            return (await client.post("/generate", content=b"{}")).status_code == 200

        await until_async(is_free, "the place was not given back")


# --- who it is, and what it may steer -------------------------------------------------------------


async def test_the_address_that_counts_is_the_peers() -> None:
    """uvicorn believes `X-Forwarded-For` from loopback; the proxy's protocol does not."""
    async with gated(Inner(), rules=LOCKED) as port, caller(port) as client:
        headers = {"X-Internal-API-Key": KEY, "X-Forwarded-For": "203.0.113.9"}
        answer = await client.post("/generate", content=b"{}", headers=headers)
        assert answer.json()["client"][0] == "127.0.0.1"


async def test_a_caller_cannot_steer_serve() -> None:
    """A request that says it must not be cancelled would keep its place after its client."""
    inner = Inner()
    steering = {
        "X-Request-Disconnect-Disabled": "?1",
        "X-Request-Timeout-Seconds": "9",
        "X-Session-Id": "a",
        "X-Request-ID": "\xff",
    }
    async with gated(inner) as port, caller(port) as client:
        headers = {name: value.encode("latin-1") for name, value in steering.items()}
        await client.post("/generate", content=b"{}", headers=headers)
        await client.post("/generate", content=b"{}", headers={"X-Request-ID": "mine-1"})
    (first, second) = (scope for scope in inner.seen if scope["path"] == "/generate")
    assert not {name.lower().encode() for name in steering} & dict(first["headers"]).keys()
    assert dict(second["headers"])[b"x-request-id"] == b"mine-1"
    assert not first["extensions"]


async def test_there_are_no_websockets() -> None:
    upgrade = head(
        "GET",
        "/generate",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    async with gated(Inner()) as port, raw(port, upgrade) as connection:
        assert b" 101 " not in await connection.reader.readuntil(b"\r\n\r\n")


async def test_a_client_that_goes_away_is_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Mend 4.10: no traceback for what a client does."""
    inner = Inner()
    caplog.set_level(logging.INFO)
    start = head("POST", "/generate", "Content-Length: 1000") + b"x"
    async with gated(inner) as port:
        async with raw(port, start) as connection:
            await until_async(lambda: inner.count("/hc") == 1, "the request was not checked")
            connection.close()
        await until_async(lambda: "disconnected before" in caplog.text, "nothing was logged")
        async with raw(port, head("POST", "/wait", "Content-Length: 0")):
            await asyncio.wait_for(inner.arrived.wait(), 30)
        inner.release.set()
    records = [record for record in caplog.records if record.name == "ray.serve"]
    assert [record.levelno for record in records] == [logging.INFO]
    assert not any(record.exc_info for record in caplog.records)
    assert inner.count("/generate") == 0
