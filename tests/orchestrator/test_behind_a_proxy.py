"""The service behind a reverse proxy, as it is to be run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from orchestrator.service.access import GUESSES_PER_MINUTE
from tests.orchestrator.reverse_proxy import reverse_proxy
from tests.orchestrator.running import ADMIN_KEY, DONE, INTERNAL_KEY, Running, assert_error


@pytest.fixture
def proxied(service: Running) -> Iterator[Running]:
    """The service as its callers reach it: through the proxy."""
    with reverse_proxy(service.url) as url:
        keys = {"worker": INTERNAL_KEY, "admin": ADMIN_KEY}
        callers = {
            name: httpx.Client(base_url=url, headers={"X-Internal-API-Key": key}, timeout=40)
            for name, key in keys.items()
        }
        yield replace(service, url=url, **callers)
        for caller in callers.values():
            caller.close()


def test_a_held_claim_is_answered_through_a_proxy(proxied: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(proxied.claim, wait_s=30)
        proxied.wait_for_held_claims(1)
        proxied.submit("job-1")
        job = held.result(timeout=20)
    assert job is not None
    assert job["musetalk_job_id"] == "job-1"


def test_events_come_through_a_proxy_one_by_one(proxied: Running) -> None:
    proxied.submit("job-1")
    with proxied.admin.stream("GET", "/v1/avatar/jobs/job-1/events") as response:
        assert response.headers["X-Accel-Buffering"] == "no"
        lines = (line for line in response.iter_lines() if line.startswith("data:"))
        assert json.loads(next(lines)[5:])["kind"] == "submitted"
        job = proxied.claim()  # only now: the event before it has not waited for it
        assert job is not None
        assert json.loads(next(lines)[5:])["kind"] == "claimed"
        proxied.report("job-1", **DONE, attempt=job["attempt"])
        kinds = [json.loads(line[5:]).get("kind", "end") for line in lines]
    assert kinds == ["succeeded", "end"]


@pytest.mark.slow
def test_the_address_of_a_caller_is_not_taken_from_a_header(proxied: Running) -> None:
    """Else a caller could guess on under new addresses."""
    key = proxied.bench.store.add_key("client", "shop")
    wrong = key[:-4] + "AAAA"
    for number in range(2 * GUESSES_PER_MINUTE):  # a guess is allowed again every few seconds
        forged = {"X-Internal-API-Key": wrong, "X-Forwarded-For": f"203.0.113.{number}"}
        answer = httpx.get(f"{proxied.url}/v1/avatar/jobs", headers=forged)
        if answer.status_code != 403:
            break
    assert_error(answer, 429, "too_many_guesses")
