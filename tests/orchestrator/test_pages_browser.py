"""The pages in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, expect

from orchestrator.store.leases import FailureKind
from orchestrator.store.values import AttemptName, Failure, Progress
from serve_app.launcher.machine import has_ipv6
from tests.browser import SIZES, WAIT_MS, Scheme, chromium_path, open_chromium
from tests.conftest import ClipFactory
from tests.contract.webhook_target import listening
from tests.orchestrator.databases import RULES, SqliteFiles, open_bench
from tests.orchestrator.page_facts import NO_MEMORY, OFFERS, Plant
from tests.orchestrator.pages_browser import Operator, operator_at
from tests.orchestrator.reverse_proxy import reverse_proxy
from tests.orchestrator.running import ADMIN_KEY, DONE, Running, running_service
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium_path() is None, reason="Chromium is not installed"),
]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>'\"{{7*7}}\u202e"
PAGES = (
    "/",
    "/jobs",
    "/workers",
    "/job?id=keynote-4k",
    "/job?id=webinar-3",
    "/job?id=lesson-01-en",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for all tests of this module."""
    expect.set_options(timeout=WAIT_MS)
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def operator(chromium: Browser, service: Running) -> Iterator[Operator]:
    """Somebody who has signed in at a desktop, to a service without jobs."""
    with operator_at(chromium, service) as somebody:
        somebody.sign_in()
        yield somebody
        assert somebody.faults == []


@pytest.fixture(scope="module")
def busy_service(
    sqlite_files: SqliteFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A service that has been at work for an hour."""
    file = sqlite_files.new(tmp_path_factory.mktemp("busy"))
    bench = open_bench(file, replace(RULES, offers=OFFERS))
    Plant(bench, "http://127.0.0.1:9/result.mp4").fill()
    with running_service(bench) as running:
        yield running


@contextmanager
def file_server(handler: Any) -> Iterator[str]:
    """Serve files on a free port of this machine. Return the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_job_is_watched_until_it_ends(operator: Operator) -> None:
    page, service = operator.page, operator.running
    operator.open("/")
    service.submit("job-1")
    row = page.get_by_role("row").filter(has_text="job-1")
    expect(row).to_contain_text("Queued")
    row.get_by_role("link", name="job-1").click()
    heading = page.get_by_role("main").locator(".head")
    expect(heading).to_contain_text("Queued")
    service.claim("w1")
    expect(heading).to_contain_text("Running")
    service.report("job-1", metrics={"frames_done": 50, "frames_total": 100})
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "0.5")
    expect(page.get_by_text("50 of 100 frames")).to_be_visible()
    service.report("job-1", **DONE | {"output_url": f"{service.url}/none.mp4"})
    expect(heading).to_contain_text("Succeeded")
    expect(page.get_by_role("status").first).to_have_text("The job is succeeded.")
    expect(page.get_by_role("listitem").filter(has_text="Succeeded")).to_contain_text("by w1")
    expect(page).to_have_title("Succeeded: job-1 · Lip-sync orchestrator")
    operator.faults[:] = [fault for fault in operator.faults if "404" not in fault]  # the video


def test_the_result_is_played(operator: Operator, clip: ClipFactory) -> None:
    file = clip(frames=25)
    handler = partial(SimpleHTTPRequestHandler, directory=str(file.parent))
    with file_server(handler) as address:
        service = operator.running
        service.submit("job-1")
        service.claim()
        service.report("job-1", **DONE | {"output_url": f"{address}/{file.name}"})
        operator.open("/job?id=job-1")
        video = operator.page.locator("video")
        video.evaluate("video => { video.muted = true; return video.play(); }")
        expect(video).to_have_js_property("ended", True)
        assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [320, 240]


def test_a_job_is_cancelled_and_put_back_by_the_keyboard(operator: Operator) -> None:
    page, service = operator.page, operator.running
    service.submit("job-1")
    service.claim()
    operator.open("/job?id=job-1")
    operator.tab_to("Cancel job…")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Cancel the job?")
    expect(dialog).to_be_visible()
    operator.tab_to("Keep it")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    assert service.status("job-1") == "running"
    page.keyboard.press("Enter")  # the focus is back
    operator.tab_to("Cancel the job")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The job is cancelled.")).to_be_visible()
    assert service.status("job-1") == "cancelled"
    expect(page).to_have_url(f"{service.url}/job?id=job-1")  # the outcome is said once
    operator.tab_to("Put back into the queue")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The job waits again.")).to_be_visible()
    assert service.status("job-1") == "queued"


def test_a_dead_job_is_put_back(operator: Operator) -> None:
    page, service = operator.page, operator.running
    service.submit("job-1")
    for number in range(3):
        service.claim(f"w{number}")
        service.report("job-1", f"w{number}", status="failed", error=NO_MEMORY.error)
    operator.open("/")
    page.locator(".figures .bad").get_by_role("link", name="1").click()
    page.get_by_role("link", name="job-1").click()
    expect(page.locator("#problem")).to_contain_text(NO_MEMORY.error)
    expect(page.locator("#attempts tbody tr")).to_have_count(3)
    page.get_by_role("button", name="Put back into the queue").click()
    expect(page.get_by_text("The job waits again.")).to_be_visible()
    assert service.status("job-1") == "queued"


def test_a_webhook_is_sent_again_behind_a_proxy_with_a_prefix_over_ipv6(
    chromium: Browser, sqlite_files: SqliteFiles, tmp_path: Path
) -> None:
    """The button is a form whose address, session and answer all have the prefix."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    variables = {
        "WEBHOOK_SECRET": SECRET,
        "ORCHESTRATOR_WEBHOOK_HOSTS": "127.0.0.1",
        "ORCHESTRATOR_ROOT_PATH": "/ops/queue",
        "ORCHESTRATOR_TRUSTED_PROXIES": "::1",
    }
    bench = open_bench(sqlite_files.new(tmp_path), RULES)
    with (
        listening() as target,
        running_service(bench, host="::1", **variables) as running,
        reverse_proxy(running.url, "::1", "/ops/queue", "http") as url,
        operator_at(chromium, replace(running, url=url)) as somebody,
    ):
        running.submit("a/b?c#d", webhook_url=target.url)
        job = "/v1/avatar/jobs/a%2Fb%3Fc%23d"
        running.admin.delete(job).raise_for_status()

        def is_delivered() -> bool:
            [one] = running.admin.get(f"{job}/deliveries").json()["deliveries"]
            return str(one["status"]) == "delivered"

        until(is_delivered, "the webhook has not come")
        somebody.sign_in()
        somebody.open("/job?id=a%2Fb%3Fc%23d")
        somebody.page.get_by_role("button", name="Send the webhook").click()
        expect(somebody.page.get_by_text("The webhook is sent again")).to_be_visible()
        assert somebody.page.url == f"{url}/job?id=a%2Fb%3Fc%23d"
        until(lambda: len(target.got) == 2, "the webhook has not come again")
        assert len({got.headers["webhook-id"] for got in target.got}) == 1
        assert somebody.faults == []


def test_a_worker_is_drained_and_its_list_is_kept(operator: Operator) -> None:
    page, service = operator.page, operator.running
    for name in ("w1", "w2"):
        service.claim(name)
    operator.open("/workers?tier=main&state=online")
    page.get_by_role("button", name="Drain w1").click()
    expect(page.get_by_text("claims nothing more")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="w1")).to_contain_text("Draining")
    expect(page).to_have_url(f"{service.url}/workers?tier=main&state=online")
    service.submit("job-1")
    assert service.claim("w1") is None
    page.get_by_role("button", name="Undrain w1").click()
    expect(page.get_by_role("button", name="Drain w1")).to_be_visible()
    assert service.claim("w1") is not None


def test_the_list_stays_where_it_is_while_it_changes(operator: Operator) -> None:
    page, service = operator.page, operator.running
    for number in range(3):
        service.submit(f"job-{number}")
    operator.open("/jobs")
    page.get_by_label("Client").fill("half a w")
    link = page.get_by_role("link", name="job-1")
    link.focus()
    service.submit("job-9")
    expect(page.get_by_role("link", name="job-9")).to_be_visible()
    expect(link).to_be_focused()
    expect(page.get_by_label("Client")).to_have_value("half a w")
    expect(page.get_by_role("status").first).to_be_empty()  # lists are not read out


def test_a_lost_connection_is_said(
    chromium: Browser, sqlite_files: SqliteFiles, tmp_path: Path
) -> None:
    bench = open_bench(sqlite_files.new(tmp_path), RULES)
    with running_service(bench) as running, operator_at(chromium, running) as somebody:
        somebody.sign_in()
        somebody.open("/")
        # Stops while the page is open.
        running.loop.call_soon_threadsafe(running.services.stop)
        expect(somebody.page.locator("#connection")).to_have_text("Not connected")


def test_a_link_of_another_site_leads_to_its_page(operator: Operator, tmp_path: Path) -> None:
    service = operator.running
    service.submit("job-1")
    (tmp_path / "chat.html").write_text(f'<a href="{service.url}/job?id=job-1">Look</a>')
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with file_server(handler) as address:
        operator.page.goto(address.replace("127.0.0.1", "localhost") + "/chat.html")
        operator.page.get_by_role("link").click()
        expect(operator.page.get_by_role("heading", level=1)).to_have_text("job-1")
    operator.faults[:] = [fault for fault in operator.faults if "404" not in fault]  # its icon


def test_a_hostile_job_is_text(operator: Operator) -> None:
    page, service = operator.page, operator.running
    given = {"metadata": {MARKUP: MARKUP}, "params": {MARKUP: MARKUP}, "aspect_ratio": "<i>x</i>"}
    service.submit(MARKUP, **given)
    job = service.claim(MARKUP, gpu_class=MARKUP)
    assert job is not None
    name = AttemptName(MARKUP, MARKUP, 1)
    service.bench.store.progress(name, Progress(0.5, MARKUP, {"frames_total": 1}))
    failure = Failure(MARKUP, {"code": MARKUP, "stage": MARKUP})
    service.bench.store.fail(name, failure, FailureKind.INPUT)
    for path in ("/", "/jobs", "/workers"):
        operator.open(path)
        expect(page.get_by_text(MARKUP[:30]).first).to_be_visible()
        assert page.locator("main img, main script, main i").count() == 0
    operator.open("/jobs")
    page.get_by_role("link", name=MARKUP[:30]).first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(MARKUP)
    for part in ("#problem", "#attempts", "#events", "#input"):
        expect(page.locator(part)).to_contain_text(MARKUP.partition('"')[0])  # JSON escapes it
    assert page.locator("main img, main script, main i").count() == 0
    assert page.evaluate("document.querySelectorAll('main [onerror]').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pages_are_accessible_and_fit(
    chromium: Browser, busy_service: Running, size: str, scheme: Scheme
) -> None:
    with operator_at(chromium, busy_service, size, scheme) as somebody:
        somebody.page.goto(f"{busy_service.url}/sign-in")
        assert somebody.violations() == []
        somebody.sign_in()
        for path in PAGES:
            somebody.open(path)
            assert (path, somebody.violations()) == (path, [])
            assert (path, somebody.overflow_px()) == (path, 0)
        somebody.page.goto(f"{busy_service.url}/job?id=none")
        assert somebody.violations() == []


def test_without_the_script_pages_work(chromium: Browser, busy_service: Running) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    try:
        page.goto(f"{busy_service.url}/job?id=keynote-4k")
        page.get_by_label("Admin key").fill(ADMIN_KEY)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("keynote-4k")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Admin key")).to_be_visible()
    finally:
        context.close()
