"""The pages over a real socket: who is let in, what forms may do, and what is escaped."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from orchestrator.pages.doors import COOKIE, WRONG_KEYS_PER_MINUTE
from orchestrator.pages.sessions import SESSION_S, Sessions
from orchestrator.pages.timeline import MAX_BARS, MIN_WIDTH, WIDTH, bars
from orchestrator.pages.words import ago, dollars, origin_of, span
from orchestrator.service.logs import LineFormatter
from orchestrator.store.states import AttemptEnd, JobState
from orchestrator.store.store import JobStore
from orchestrator.store.values import Attempt, AttemptName, Completion
from tests.orchestrator.databases import RULES, Bench, SqliteFiles, new_job, open_bench, worker
from tests.orchestrator.page_facts import OFFERS, Plant
from tests.orchestrator.running import ADMIN_KEY, DONE, Running, running_service
from tests.waiting import until

MARKUP = "<script>alert('\"&')</script>"


@pytest.fixture
def browser(service: Running) -> Iterator[httpx.Client]:
    """Somebody who has signed in to a service of its own."""
    with httpx.Client(base_url=service.url) as client:
        answer = client.post("/sign-in", data={"key": ADMIN_KEY})
        assert answer.status_code == 303
        yield client


def token_of(page: httpx.Response) -> str:
    found = re.search(r'name="token" value="(\w+)"', page.text)
    assert found
    return found[1]


# Signing in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/jobs?state=dead", "/job?id=j", "/workers"])
def test_without_a_session_a_page_leads_to_the_sign_in(shared_service: Running, path: str) -> None:
    answer = shared_service.nobody.get(path)
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/sign-in")
    assert shared_service.worker.get(path).status_code == 303  # a key in a header is no session
    assert shared_service.nobody.get("/live").status_code == 401


def test_the_right_key_opens_a_session_that_scripts_and_other_sites_cannot_use(
    shared_service: Running,
) -> None:
    form = {"key": ADMIN_KEY, "next": "/jobs?state=dead"}
    answer = shared_service.nobody.post("/sign-in", data=form)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/jobs?state=dead")
    cookie = answer.headers["Set-Cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie
    assert ADMIN_KEY not in cookie
    shared_service.nobody.cookies.clear()


@pytest.mark.parametrize("next_page", ["//evil.example", "https://evil.example", "/\\evil", "\n"])
def test_the_sign_in_leads_to_no_other_site(shared_service: Running, next_page: str) -> None:
    form = {"key": ADMIN_KEY, "next": next_page}
    answer = shared_service.nobody.post("/sign-in", data=form)
    assert answer.headers["Location"] == "/"
    shared_service.nobody.cookies.clear()


def test_wrong_keys_are_refused_and_after_some_the_right_one_too(service: Running) -> None:
    answer = service.nobody.post("/sign-in", data={"key": "wrong"})
    assert answer.status_code == 403
    assert "This is not the admin key" in answer.text
    tried = 1
    while answer.status_code == 403 and tried < 10 * WRONG_KEYS_PER_MINUTE:
        answer = service.nobody.post("/sign-in", data={"key": "wrong"})
        tried += 1
    assert WRONG_KEYS_PER_MINUTE < tried < 10 * WRONG_KEYS_PER_MINUTE
    answer = service.nobody.post("/sign-in", data={"key": ADMIN_KEY})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert COOKIE not in answer.cookies


def test_a_session_ends_by_itself_by_signing_out_and_with_the_key() -> None:
    now = [1000.0]
    sessions = Sessions("key", lambda: now[0])
    cookie = sessions.open()
    session = sessions.read(cookie)
    assert session is not None
    assert Sessions("key", lambda: now[0]).read(cookie) == session  # another process
    assert Sessions("another key", lambda: now[0]).read(cookie) is None
    assert Sessions(None).read(cookie) is None
    for forged in (None, "", ".", "a.b", cookie[:-1], cookie.replace(".", ".9", 1), f"{cookie}0"):
        assert sessions.read(forged) is None
    sessions.close(session)
    assert sessions.read(cookie) is None
    cookie = sessions.open()
    now[0] += SESSION_S
    assert sessions.read(cookie) is None


def test_signing_out_closes_the_session(service: Running, browser: httpx.Client) -> None:
    cookie = browser.cookies[COOKIE]
    form = {"token": token_of(browser.get("/"))}
    assert browser.post("/sign-out", data=form).headers["Location"] == "/sign-in"
    copied = {"Cookie": f"{COOKIE}={cookie}"}
    assert service.nobody.get("/", headers=copied).status_code == 303


def test_without_an_admin_key_nobody_signs_in(sqlite_files: SqliteFiles, tmp_path: Path) -> None:
    bench = open_bench(sqlite_files.new(tmp_path), RULES)
    with running_service(bench, ORCHESTRATOR_ADMIN_KEY="") as running:
        assert "Set ORCHESTRATOR_ADMIN_KEY" in running.nobody.get("/sign-in").text
        assert running.nobody.post("/sign-in", data={"key": ""}).status_code == 403


def test_behind_a_proxy_with_tls_and_a_prefix(sqlite_files: SqliteFiles, tmp_path: Path) -> None:
    bench = open_bench(sqlite_files.new(tmp_path), RULES)
    settings = {"ORCHESTRATOR_ROOT_PATH": "/queue", "ORCHESTRATOR_TRUSTED_PROXIES": "127.0.0.1"}
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    with running_service(bench, **settings) as running:
        away = running.nobody.get("/jobs", headers=said)
        assert away.headers["Location"] == "/queue/sign-in?next=%2Fjobs"
        answer = running.nobody.post("/sign-in", data={"key": ADMIN_KEY}, headers=said)
        assert answer.headers["Location"] == "/queue/"
        assert {"secure", "path=/queue"} <= set(answer.headers["Set-Cookie"].lower().split("; "))
        cookie = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
        page = running.nobody.get("/", headers=said | cookie)
        assert page.status_code == 200
        addresses = re.findall(r'(?:href|src|action|data-live)="([^"#]+)"', page.text)
        assert addresses and all(each.startswith("/queue/") for each in addresses)


def test_forwarding_headers_of_others_are_not_believed(shared_service: Running) -> None:
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    answer = shared_service.nobody.post("/sign-in", data={"key": ADMIN_KEY}, headers=said)
    assert "secure" not in answer.headers["Set-Cookie"].lower()
    shared_service.nobody.cookies.clear()


# Forms ---------------------------------------------------------------------------------------


def test_a_form_of_another_site_or_session_does_nothing(
    service: Running, browser: httpx.Client
) -> None:
    service.submit("job-1")
    token = token_of(browser.get("/job?id=job-1"))
    foreign = {"Sec-Fetch-Site": "cross-site"}
    tries = [
        browser.post("/do/cancel", data={"id": "job-1"}),
        browser.post("/do/cancel", data={"id": "job-1", "token": "0" * 64}),
        browser.post("/do/cancel", data={"id": "job-1", "token": token}, headers=foreign),
    ]
    assert [answer.status_code for answer in tries] == [403, 403, 403]
    assert all("The form" in answer.text for answer in tries)
    unsigned = service.nobody.post("/do/cancel", data={"id": "job-1", "token": token})
    assert (unsigned.status_code, unsigned.headers["Location"]) == (303, "/sign-in")
    assert service.status("job-1") == "queued"


def test_what_cannot_be_done_is_said_in_a_sentence(service: Running, browser: httpx.Client) -> None:
    service.submit("job-1")
    service.claim()
    service.report("job-1", **DONE)
    token = token_of(browser.get("/"))
    for action, job_id, sentence in (
        ("cancel", "job-1", "has ended already"),
        ("retry", "job-1", "cannot be put back"),
        ("cancel", "none", "There is no such job"),
        ("drain", "none", "There is no such worker"),
    ):
        form = {"token": token, "id": job_id}
        answer = browser.post(f"/do/{action}", data=form, follow_redirects=True)
        assert sentence in answer.text and 'role="alert"' in answer.text


# What is shown -------------------------------------------------------------------------------


def test_what_clients_and_workers_send_is_text(service: Running, browser: httpx.Client) -> None:
    for job_id in (MARKUP, "..", "a/b?c#d"):
        service.submit(job_id, metadata={MARKUP: MARKUP}, params={"x": MARKUP}, resolution="<b>1")
    assert service.claim(MARKUP, gpu_class=MARKUP) is not None
    result = Completion(f"javascript:{MARKUP}", {MARKUP: MARKUP}, {"usd": MARKUP})
    service.bench.store.finish(AttemptName(MARKUP, MARKUP, 1), result)
    pages = ["/", "/jobs", "/workers", *(f"/job?id={id}" for id in ("..", "a%2Fb%3Fc%23d"))]
    for path in (*pages, str(httpx.URL("/job", params={"id": MARKUP}))):
        page = browser.get(path)
        assert page.status_code == 200
        assert "<script>alert" not in page.text and "<b>1" not in page.text
        assert 'href="javascript' not in page.text and 'src="javascript' not in page.text
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "&lt;script&gt;" in browser.get("/workers").text


def test_a_page_has_no_inline_script_or_style_and_signatures_stay_here(
    service: Running, browser: httpx.Client
) -> None:
    Plant(service.bench).fill()
    for path in (
        "/",
        "/jobs",
        "/workers",
        "/scaling",
        "/job?id=keynote-4k",
        "/job?id=lesson-01-en",
        "/none",
    ):
        page = browser.get(path).text
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page)
        assert "signature" not in page


def test_lists_are_bounded_filtered_and_paged(service: Running, browser: httpx.Client) -> None:
    for number in range(60):
        service.bench.store.submit(new_job(f"Job-{number:02}", client=f"c{number % 2}"))
        service.bench.store.register(worker(f"w-{number:02}"))
    first = browser.get("/jobs").text
    assert first.count('id="job-') == 50
    found = re.search(r'rel="next" href="([^"]+)"', first)
    assert found
    second = browser.get(found[1].replace("&amp;", "&")).text
    assert second.count('id="job-') == 10
    assert browser.get("/jobs?client=c1&id=Job-1").text.count('id="job-') == 5
    assert browser.get("/jobs?id=job-1").text.count('id="job-') == 0  # letters have their case
    assert browser.get("/jobs?id=Job-07").headers["Location"] == "/job?id=Job-07"
    assert browser.get("/jobs?state=dead").text.count('id="job-') == 0
    assert browser.get("/jobs?state=x").status_code == 422
    assert browser.get("/jobs?cursor=x").status_code == 422
    assert browser.get("/workers").text.count('id="worker-') == 50
    assert browser.get("/workers?after=w-49").text.count('id="worker-') == 10
    assert browser.get("/workers?tier=buffer").text.count('id="worker-') == 0
    assert browser.get("/job?id=none").status_code == 404


def test_deliveries_are_shown_without_what_may_be_secret_in_their_addresses(
    service: Running, browser: httpx.Client
) -> None:
    hook = "https://hooks.invalid/token-of-the-client?key=secret"
    service.bench.store.submit(new_job("job-1", webhook_url=hook))
    service.bench.store.cancel("job-1")
    page = browser.get("/job?id=job-1").text
    assert "Deliveries" in page and "https://hooks.invalid" in page
    assert "token-of" not in page and "secret" not in page
    assert "Send again" not in page  # this service has no secret to sign with


def test_decisions_are_shown_with_reasons_and_faults(
    service: Running, browser: httpx.Client
) -> None:
    assert "rents no workers" in browser.get("/scaling").text
    assert "Decisions" not in browser.get("/").text
    Plant(service.bench).decide()
    for path in ("/", "/scaling"):
        page = browser.get(path).text
        assert "a deadline would be missed." in page
        assert "no machine is free at this price" in page
    assert page.count('id="offer-') == len(OFFERS)


@pytest.mark.slow
def test_the_overview_counts(bench: Bench) -> None:
    Plant(bench).fill(lessons=2)
    seen = JobStore(bench.database, replace(RULES, offers=OFFERS)).overview()
    assert seen.usd_per_hour == pytest.approx(0.07 + 0.09 + 0.07 + 0.34 + 0.19 + 0.69)
    assert bench.store.overview().usd_per_hour is None
    assert seen.jobs == {
        JobState.QUEUED: 6,
        JobState.RUNNING: 3,
        JobState.DEAD: 1,
        JobState.SUCCEEDED: 2,
        JobState.FAILED: 1,
        JobState.CANCELLED: 1,
    }
    assert sum(count.workers for count in seen.workers) == 7
    assert {(c.worker_type, c.state) for c in seen.workers} >= {
        ("main", "busy"),
        ("transient", "draining"),
        ("buffer", "offline"),
    }
    assert seen.spending.jobs == 2 and 0 < seen.spending.usd < 0.1


def attempt(number: int, began: float, ended: float | None, how: AttemptEnd | None) -> Attempt:
    """An attempt that has only its times and its end."""
    return Attempt(number, 1, "w1", "main", None, began, ended, how, None, None, None)


def test_bars_stay_on_their_line(service: Running) -> None:
    made = service.bench.store.submit(new_job("job-1"))[0]
    job = replace(made, created_at=1000.0)
    tries = (
        attempt(1, 1000.0, 1000.0, AttemptEnd.INTERRUPTED),
        attempt(2, 1050.0, 1060.0, AttemptEnd.FAILED),
        attempt(3, 1090.0, None, None),
    )
    drawn = bars(job, tries, now=1100.0)
    assert [bar.kind for bar in drawn] == ["interrupted", "failed", "running"]
    assert [(bar.x, bar.x + bar.width) for bar in drawn] == [(0, 4), (500, 600), (900, WIDTH)]
    late = attempt(4, 1100.0, 1100.0, AttemptEnd.FAILED)
    assert bars(replace(job, ended_at=1100.0), (late,), 1e9)[0].x == WIDTH - MIN_WIDTH
    assert len(bars(job, [tries[1]] * 500, 1100.0)) == MAX_BARS


def test_words() -> None:
    assert [span(s) for s in (None, 0, 4.21, 59.6, 192, 7500, 90061)] == [
        "–", "0 s", "4.2 s", "1 min 0 s", "3 min 12 s", "2 h 5 min", "1 d 1 h",
    ]  # fmt: skip
    assert [ago(0, now) for now in (-3, 4, 59, 61, 7300)] == [
        "just now", "just now", "55 s ago", "1 min ago", "2 h ago",
    ]  # fmt: skip
    assert [dollars(d) for d in (None, 0, 0.00142, 12.5)] == ["–", "$0.00", "$0.0014", "$12.50"]
    assert origin_of("https://files.example:8443/a.mp4?x=1") == "https://files.example:8443"
    for odd in (None, "", "javascript:x", "https://a;script-src *", "https://[x", "http://a:b/"):
        assert origin_of(odd) is None


# Metrics and logs ----------------------------------------------------------------------------


def test_metrics_say_what_happened_and_need_the_key(service: Running) -> None:
    assert service.nobody.get("/metrics").status_code == 401
    assert service.worker.get("/metrics").status_code == 403
    service.submit("job-1")
    service.submit("job-2")
    service.claim()
    service.report("job-1")
    service.report("job-1", **DONE)
    service.claim("w2")
    service.bench.age(31)
    lost = "orchestrator_lost_leases_total 1.0"  # it is counted after it is stored
    until(lambda: lost in service.admin.get("/metrics").text, "no lease was lost")
    text = service.admin.get("/metrics").text
    for line in (
        'orchestrator_jobs{state="queued"} 1.0',
        'orchestrator_jobs{state="succeeded"} 1.0',
        'orchestrator_claims_total{answer="job"} 2.0',
        'orchestrator_reports_total{kind="progress"} 1.0',
        'orchestrator_reports_total{kind="succeeded"} 1.0',
        "orchestrator_claim_seconds_count 2.0",
        'orchestrator_workers{state="offline",tier="main"} 2.0',
        'orchestrator_request_seconds_count{route="/v1/avatar/jobs",status="202"} 2.0',
    ):
        assert line in text.splitlines()
    assert float(re.findall(r"^orchestrator_queue_age_seconds (.+)$", text, re.M)[0]) >= 31
    assert "job-1" not in text


def test_labels_of_metrics_are_bounded(service: Running) -> None:
    for number in range(20):
        service.nobody.get(f"/unknown/{number}")
        service.admin.get(f"/v1/avatar/jobs/none-{number}")
    text = service.admin.get("/metrics").text
    routes = set(re.findall(r'route="([^"]*)"', text))
    assert routes == {"other", "/v1/avatar/jobs/{job_id:path}"}


def test_metrics_may_be_open(sqlite_files: SqliteFiles, tmp_path: Path) -> None:
    bench = open_bench(sqlite_files.new(tmp_path), RULES)
    with running_service(bench, ORCHESTRATOR_OPEN_METRICS="true") as running:
        assert "orchestrator_jobs" in running.nobody.get("/metrics").text


def test_log_lines_are_json_and_name_job_attempt_and_worker(
    service: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "orchestrator")
    service.submit("job-1")
    service.claim()
    service.report("job-1", **DONE)
    service.submit("job-2")
    service.claim("w2")
    service.bench.age(31)
    until(lambda: "lease expired" in caplog.messages, "no lease has expired")
    lines = [json.loads(LineFormatter().format(record)) for record in caplog.records]
    said = {line["message"]: line for line in lines}
    whose = {"job claimed": ("job-2", 1, "w2"), "lease expired": ("job-2", 1, "w2")}
    for message, (job_id, attempt, worker_id) in whose.items():
        line = said[message]
        assert (line["job_id"], line["attempt"], line["worker_id"]) == (job_id, attempt, worker_id)
        assert {"time", "level", "logger", "process"} <= set(line)
    assert said["job submitted"]["job_id"] == "job-2"
    assert said["job reported"]["worker_id"] == "w1"
