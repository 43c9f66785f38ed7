"""The soak: many short jobs, enter by every way, among kills, faults, duplicates and cancellations.

Three phases over one application:

    storm    jobs while replicas are killed and networks fail
    settle   jobs with no more kills, so that every process is warm; then a first measurement
    steady   jobs with network faults, duplicates and cancellations; then a second measurement

Each job is a scenario in a thread: it knows what it did to the job, hence how the job may end.
LIPSYNC_SOAK_JOBS (200) and LIPSYNC_SOAK_SEED (4) change the size and the choices.
"""

import contextlib
import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av
import httpx
import pytest

from tests.contract.fake_orchestrator import (
    FakeOrchestrator,
    Kind,
    answer,
    close,
    lost_answer,
    stall,
)
from tests.serve.running import RunningApp, running_app
from tests.waiting import until

JOBS = int(os.environ.get("LIPSYNC_SOAK_JOBS", "200"))
SEED = os.environ.get("LIPSYNC_SOAK_SEED", "4")
# A fresh process grows by a few MiB over its first fifty jobs, then no more.
STORM, SETTLE = round(JOBS * 0.5), round(JOBS * 0.25)
KEY = "test-internal-key"
AT_ONCE = 5  # scenarios; two jobs run, the others wait
END_S = 240.0  # a job that has not ended by then never will
RESTART_S = 45.0  # what a killed ingress is allowed to refuse
STAGES = ("Preprocessor", "Generator-cpu", "Finisher")
TERMINAL = ("succeeded", "failed", "cancelled")
# May grow between the measurements.
MORE_MIB, MORE_SHARE, MORE_FILES, MORE_THREADS = 60.0, 0.15, 5, 3


# Media ---------------------------------------------------------------------------------------


class FlakyMedia(ThreadingHTTPServer):
    """Serves /{how}/{token}/{name}: the first request for a token goes wrong in the way named."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _MediaHandler)
        self.files = files
        self._seen: set[str] = set()
        self._guard = threading.Lock()

    def is_first(self, token: str) -> bool:
        with self._guard:
            is_first = token not in self._seen
            self._seen.add(token)
            return is_first


class _MediaHandler(BaseHTTPRequestHandler):
    server: FlakyMedia
    timeout = 30.0

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):  # the client may be killed, or cancel
            self._serve()

    def _serve(self) -> None:
        _, how, token, name = self.path.split("/")
        if how == "missing":
            return self.send_error(404)
        is_first = self.server.is_first(f"{token}/{name}")
        if how == "busy" and is_first:
            return self.send_error(503)
        data = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if how == "cut" and is_first:
            self.wfile.write(data[: len(data) // 2])
            return None
        step = len(data) // 8 + 1 if how == "slow" else len(data)
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            if how == "slow":
                time.sleep(0.1)
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def flaky_media(files: dict[str, bytes]) -> Iterator[FlakyMedia]:
    server = FlakyMedia(files)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def media(clip, speech, tmp_path_factory) -> Iterator[FlakyMedia]:
    """Clips and speech by name, and two files that are no video."""
    shapes = [(12, 160, 120), (20, 240, 180), (25, 320, 240)]
    files = {f"clip{n}.mp4": clip(frames=n, width=w, height=h).read_bytes() for n, w, h in shapes}
    files |= {f"speech{n}.wav": speech(n / 25).read_bytes() for n in (10, 15, 20, 25)}
    files["long.wav"] = speech(20.0).read_bytes()
    pattern = tmp_path_factory.mktemp("pattern") / "pattern.mp4"
    lavfi = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=d=0.6:s=320x240:r=25"]
    subprocess.run([*lavfi, "-pix_fmt", "yuv420p", str(pattern)], check=True, timeout=60)
    files["noface.mp4"] = pattern.read_bytes()
    files["text.mp4"] = b"This is no video. " * 100
    with flaky_media(files) as server:
        yield server


# Scenarios -----------------------------------------------------------------------------------


@dataclass
class Case:
    """One job: what is sent, and how it may end. `frames` of the output, `code` of the failure."""

    id: str
    body: dict[str, Any]
    frames: int
    code: str | None = None
    may_be: set[str] = field(default_factory=lambda: {"succeeded"})
    is_claimed: bool = False
    may_be_unknown: bool = False  # it may never have come in


class Soak:
    """What the scenarios share: the application, the orchestrator, what was done to both."""

    def __init__(self, app: RunningApp, orchestrator: FakeOrchestrator, media: FlakyMedia) -> None:
        self.app, self.orchestrator, self.media = app, orchestrator, media
        self.cases: dict[str, Case] = {}
        self.seen: Counter[str] = Counter()
        self.ingress_killed_at = float("-inf")

    # Making cases

    def case(self, number: int, rng: random.Random) -> Case:
        """Choose media for a job: mostly good, sometimes bad or served badly."""
        frames = rng.choice((10, 15, 20, 25))
        how = rng.choices(("fine", "busy", "cut", "slow"), (70, 10, 10, 10))[0]
        video, code = rng.choice(("clip12.mp4", "clip20.mp4", "clip25.mp4")), None
        if rng.random() < 0.1:
            how, video, code = rng.choice(
                [
                    ("fine", "noface.mp4", "no_face"),
                    ("fine", "text.mp4", "invalid_video"),
                    ("missing", "clip12.mp4", "download_failed"),
                ]
            )
        base = f"http://127.0.0.1:{self.media.server_port}/{how}/{number}"
        urls = {"video_url": f"{base}/{video}", "audio_url": f"{base}/speech{frames}.wav"}
        picture = {"aspect_ratio": None, "resolution": None}
        case = Case(f"soak-{number}", {**urls, **picture}, frames, code)
        case.may_be = {"failed" if code else "succeeded"}
        return case

    def run(self, number: int) -> None:
        """Do one job by a chosen scenario, to its end."""
        rng = random.Random(f"{SEED}-{number}")
        case = self.case(number, rng)
        self.cases[case.id] = case
        scenarios: list[tuple[Callable[[Case, random.Random], None], int]] = [
            (self.generate, 30), (self.create, 30), (self.claim, 25),
            (self.leave, 5), (self.cancel, 5), (self.cancel_claimed, 5), (self.reassign, 5),
        ]  # fmt: skip
        [scenario] = rng.choices(
            [each for each, _ in scenarios], [weight for _, weight in scenarios]
        )
        self.seen[scenario.__name__] += 1
        scenario(case, rng)

    # Entering

    def generate(self, case: Case, rng: random.Random) -> None:
        """POST /generate, now and then twice at once; both get the same answer."""
        body = {"musetalk_job_id": case.id, **case.body}
        if rng.random() < 0.3:
            with ThreadPoolExecutor(2) as pool:
                first, second = pool.map(lambda _: self._answered(case, body), range(2))
            assert first == second, case.id
        else:
            self._answered(case, body)
        self._refuse_other_content(case)

    def _answered(self, case: Case, body: dict[str, Any]) -> str:
        """Return the status that /generate answered; like a client, ask again if it was cut off."""
        response = self._retried(lambda: self.app.generate(**body), (200, 422))
        answered: dict[str, Any] = response.json()
        assert answered["musetalk_job_id"] == case.id
        assert (answered["status"], answered.get("code")) == (
            ("failed", case.code) if case.code else ("success", None)
        ), answered
        return str(answered["status"])

    def create(self, case: Case, rng: random.Random) -> None:
        """POST /v1/avatar/jobs, now and then again, and follow the job to its end."""
        self._enter(case)
        if rng.random() < 0.3 and case.code is None:
            self._enter(case)
        self._refuse_other_content(case)
        self.wait_end(case)

    def leave(self, case: Case, rng: random.Random) -> None:
        """POST /generate and hang up."""
        case.may_be |= {"cancelled"}
        case.may_be_unknown = True
        with contextlib.suppress(httpx.TransportError):
            body = {"musetalk_job_id": case.id, **case.body}
            self.app.client.post("/generate", json=body, timeout=rng.uniform(0.05, 1.5))
        self.wait_end(case)

    def cancel(self, case: Case, rng: random.Random) -> None:
        """Create a job and cancel it, waiting or running."""
        case.may_be |= {"cancelled"}
        self._enter(case)
        time.sleep(rng.uniform(0, 3))
        path = f"/v1/avatar/jobs/{case.id}"
        self._retried(lambda: self.app.client.delete(path), (200, 409))  # the latter: it has ended
        self.wait_end(case)

    def claim(self, case: Case, rng: random.Random) -> None:
        """Let the worker claim the job, now and then twice."""
        case.is_claimed = True
        self.orchestrator.add_job(case.id, **case.body)
        self._wait_reported(case, claims=1)
        if rng.random() < 0.2 and case.code is None:
            self.orchestrator.hand_out_again(case.id)
            self._wait_reported(case, claims=2)

    def reassign(self, case: Case, rng: random.Random) -> None:
        """Let the orchestrator hand the job out again while the worker runs it."""
        case.is_claimed = True
        job = self.orchestrator.jobs[self.orchestrator.add_job(case.id, **case.body)]
        self.orchestrator.wait_until(lambda: job.claims > 0, END_S)
        time.sleep(rng.uniform(0, 2))
        self.orchestrator.hand_out_again(case.id)
        self._wait_reported(case, claims=2)

    def cancel_claimed(self, case: Case, rng: random.Random) -> None:
        """Let the orchestrator cancel a job, waiting or running."""
        case.is_claimed = case.may_be_unknown = True
        case.may_be |= {"cancelled"}
        self.orchestrator.add_job(case.id, **case.body)
        time.sleep(rng.uniform(0, 4))
        if not self.orchestrator.jobs[case.id].accepted:
            self.orchestrator.cancel(case.id)
        self.wait_end(case)

    def _enter(self, case: Case) -> None:
        body = {"musetalk_job_id": case.id, **case.body}
        create = partial(self.app.client.post, "/v1/avatar/jobs", json=body)
        assert self._retried(create, (202,)).json()["id"] == case.id

    def _refuse_other_content(self, case: Case) -> None:
        if case.code is not None:
            return  # a failed job may come again with any content
        body = {"musetalk_job_id": case.id, **case.body, "params": {"crf": 30}}
        create = partial(self.app.client.post, "/v1/avatar/jobs", json=body)
        assert self._retried(create, (409,)).json()["code"] == "job_conflict"

    # Waiting

    def _retried(
        self, ask: Callable[[], httpx.Response], expected: tuple[int, ...]
    ) -> httpx.Response:
        """Ask until an expected answer comes. Only a killed ingress excuses another one."""
        deadline = time.monotonic() + END_S
        while True:
            asked_at = time.monotonic()
            try:
                response = ask()
                if response.status_code in expected:
                    return response
                got = f"{response.status_code} {response.text[:2000]}"
            except httpx.TransportError as exc:
                got = repr(exc)
            is_excused = self.ingress_killed_at > asked_at - RESTART_S
            assert is_excused and time.monotonic() < deadline, f"{got}, not {expected}"
            self.seen["asked again"] += 1
            time.sleep(0.5)

    def wait_end(self, case: Case) -> None:
        """Wait until the job has ended here, or cannot be known here."""
        path = f"/v1/avatar/jobs/{case.id}"

        def has_ended() -> bool:
            response = self._retried(lambda: self.app.client.get(path), (200, 404))
            if response.status_code == 200:
                return response.json()["status"] in TERMINAL
            assert case.may_be_unknown, f"{case.id} is not known"
            return not self._is_claimed_now(case)

        until(
            has_ended,
            lambda: f"{self.app.job(case.id) or case.id} has not ended",
            END_S,
            pause_s=0.3,
        )

    def _is_claimed_now(self, case: Case) -> bool:
        job = self.orchestrator.jobs.get(case.id)
        return job is not None and job.status == "running"

    def _wait_reported(self, case: Case, claims: int) -> None:
        """Wait until the orchestrator has a final report of the job's last claim."""
        job = self.orchestrator.jobs[case.id]

        def is_reported() -> bool:
            if job.claims >= claims and job.status in TERMINAL:
                return True
            if job.status == "running" and self._is_claim_lost(case):
                # Its answer went down with a connection. An orchestrator sees that by the
                # heartbeats, which do not name the job.
                self.seen["claim lost"] += 1
                self.orchestrator.hand_out_again(case.id)
                job.claimed_at = time.monotonic()
            return False

        until(is_reported, lambda: f"{case.id} was not reported ({job})", END_S, pause_s=0.3)

    def _is_claim_lost(self, case: Case) -> bool:
        if time.monotonic() - self.orchestrator.jobs[case.id].claimed_at < 20.0:
            return False
        path = f"/v1/avatar/jobs/{case.id}"
        return self._retried(lambda: self.app.client.get(path), (200, 404)).status_code == 404

    # Storms

    def fault(self, rng: random.Random) -> None:
        """Let something go wrong between the worker and the orchestrator."""
        kinds: tuple[Kind, ...] = ("heartbeat", "claim", "progress", "final")
        chosen = rng.randrange(5)
        self.seen["network fault"] += 1
        if chosen == 0:
            self.orchestrator.go_away()
            time.sleep(rng.uniform(0.2, 2.0))
            self.orchestrator.come_back()
        elif chosen == 1:
            self.orchestrator.drop_connections()
        elif chosen == 2:
            self.orchestrator.plan("final", lost_answer())
        else:
            bad = (answer(500), answer(503), close(), stall(rng.uniform(0.5, 3.0)))
            self.orchestrator.plan(rng.choice(kinds), *rng.choices(bad, k=rng.randint(1, 2)))

    def kill(self, deployment: str) -> None:
        """SIGKILL a replica, if the last one that died has come back."""
        if len(self.app.replicas(deployment)) != 1:
            return
        if deployment == "Ingress":
            self.ingress_killed_at = time.monotonic()
        self.app.kill(deployment)
        self.seen[f"{deployment} killed"] += 1
        self.app.wait_ready()
        if deployment == "Ingress":
            self.ingress_killed_at = time.monotonic()  # the refusals end about here


def all_done(jobs: list[Future[None]], meanwhile: Callable[[], None]) -> None:
    """Call `meanwhile` until the jobs have ended; the first that failed ends it."""
    while not all(job.done() for job in jobs):
        for job in jobs:
            if job.done():
                job.result()
        meanwhile()
    for job in jobs:
        job.result()


def run_phase(soak: Soak, numbers: range, *, kills: bool) -> None:
    """Run these jobs among faults, and with `kills` among dying replicas."""
    rng = random.Random(f"{SEED}-{numbers.start}-chaos")
    next_kill = time.monotonic() + 5.0
    next_ingress = time.monotonic() + 20.0

    def meanwhile() -> None:
        nonlocal next_kill, next_ingress
        time.sleep(rng.uniform(0.5, 2.0))
        now = time.monotonic()
        if kills and now > next_ingress:
            soak.kill("Ingress")
            next_ingress = time.monotonic() + rng.uniform(60, 90)
            next_kill = time.monotonic() + rng.uniform(5, 15)
        elif kills and now > next_kill:
            soak.kill(rng.choice(STAGES))
            next_kill = time.monotonic() + rng.uniform(5, 15)
        elif rng.random() < 0.3:
            soak.fault(rng)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(soak.run, number) for number in numbers]
        try:
            all_done(jobs, meanwhile)
        finally:
            pool.shutdown(cancel_futures=True)


# What is left --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """What a replica's process holds. Private memory: Ray's store is shared by all of them."""

    pid: int
    mib: float
    files: int
    threads: int


def sizes(app: RunningApp) -> dict[str, Size]:
    """Measure every replica; the least of a few looks, as requests come and go."""
    looks = []
    for _ in range(5):
        looks.append({name: _size(app, name) for name in ("Ingress", *STAGES)})
        time.sleep(0.5)
    return {
        name: Size(
            looks[0][name].pid,
            min(look[name].mib for look in looks),
            min(look[name].files for look in looks),
            min(look[name].threads for look in looks),
        )
        for name in looks[0]
    }


def _size(app: RunningApp, name: str) -> Size:
    [process] = app.replicas(name)
    mib = process.memory_full_info().uss / 2**20
    return Size(process.pid, mib, process.num_fds(), process.num_threads())


def assert_flat(before: dict[str, Size], after: dict[str, Size]) -> None:
    for name, old in before.items():
        new = after[name]
        assert new.pid == old.pid, f"{name} died although nobody killed it"
        grown = f"{name} grew: {old} to {new}"
        assert new.mib - old.mib < max(MORE_MIB, 0), grown
        assert new.mib < old.mib * (1 + MORE_SHARE) or new.mib - old.mib < 5, grown
        assert new.files <= old.files + MORE_FILES, grown
        assert new.threads <= old.threads + MORE_THREADS, grown


def registry(app: RunningApp) -> list[dict[str, Any]]:
    """Return every job that the ingress knows."""
    jobs: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        params = {"limit": 50} | ({"cursor": cursor} if cursor else {})
        page = app.client.get("/v1/avatar/jobs", params=params).raise_for_status().json()
        jobs += page["jobs"]
        cursor = page["next_cursor"]
        if cursor is None:
            return jobs


def assert_quiet(app: RunningApp) -> None:
    """Nothing waits, runs, or lies about."""
    until(
        lambda: not any(_left(app).values()),
        lambda: f"{_left(app)} has not gone",
        30.0,
        pause_s=0.5,
    )


def _left(app: RunningApp) -> dict[str, list[Any]]:
    outbox, results = app.folder / "state" / "outbox", app.folder / "results"
    statuses = {job["status"] for job in registry(app)}
    return {
        "open jobs": sorted(statuses - set(TERMINAL)),
        "scratch": app.scratch,
        "reports": [path.name for path in outbox.iterdir()],
        "half outputs": [p.name for p in results.iterdir() if p.suffix == ".part"],
        "media tools": [process.pid for process in app.media_tools()],
    }


def assert_ends(soak: Soak) -> None:
    """Registry, results and orchestrator agree on one end for each job."""
    jobs = registry(soak.app)
    found = {job["id"]: job for job in jobs}
    assert len(found) == len(jobs)
    assert set(found) <= set(soak.cases)
    stored = {path.name for path in (soak.app.folder / "results").iterdir()}
    expected_files = set()
    for case in soak.cases.values():
        job = found.get(case.id)
        if job is None:
            assert case.may_be_unknown, case.id
            continue
        assert job["status"] in case.may_be, (case, job)
        if job["status"] == "succeeded":
            names = {f"{case.id}.mp4", f"{case.id}.json"}
            assert names <= stored, (case, job, stored & names)
            expected_files |= names
            _assert_output(soak.app, job, case)
        elif job["status"] == "failed":
            assert job["failure"]["code"] == case.code, (case, job)
        if case.is_claimed:
            _assert_reported(soak.orchestrator, job)
    assert stored == expected_files
    assert soak.orchestrator.violations == []


def _assert_output(app: RunningApp, job: dict[str, Any], case: Case) -> None:
    assert f"/files/{case.id}.mp4?expires=" in job["output_url"]
    with av.open(str(app.folder / "results" / f"{case.id}.mp4")) as container:
        assert len(container.streams.audio) == 1
        assert sum(1 for _ in container.decode(video=0)) == case.frames, case
    side = json.loads((app.folder / "results" / f"{case.id}.json").read_text())
    assert side["musetalk_job_id"] == case.id


def _assert_reported(orchestrator: FakeOrchestrator, job: dict[str, Any]) -> None:
    """The same report may have been accepted twice (an answer was lost); no other one."""
    reported = orchestrator.jobs[job["id"]]
    same = ("status", "phase", "output_url", "error", "metrics")
    reports = {
        json.dumps([report.get(name) for name in same], sort_keys=True)
        for report in reported.accepted
    }
    if reported.status == "cancelled":
        assert len(reports) <= 1, reported
        return
    assert len(reports) == 1, reported
    assert reported.status == job["status"], reported
    # The same file; each answer has a fresh link to it.
    stored = [str(url).partition("?")[0] for url in (reported.output_url, job["output_url"])]
    assert stored[0] == stored[1], reported


@pytest.fixture(scope="module")
def soak(media, tmp_path_factory, private_temp) -> Iterator[Soak]:
    with FakeOrchestrator(api_key=KEY) as orchestrator:
        env = {
            "ORCHESTRATOR_BASE_URL": orchestrator.url,
            "WORKER_TYPE": "main",
            "ALLOW_LOCAL_STORE": "true",
            "WORKER_ID": "box-1",
            "PROVIDER": "local",
            "POLL_INTERVAL_SEC": "0.5",
        }
        queue = {"max_concurrent_jobs": 2, "lease_s": 8.0}
        folder = tmp_path_factory.mktemp("soak")
        with running_app(folder, env=env, key=KEY, queue=queue) as app:
            yield Soak(app, orchestrator, media)


@pytest.mark.slow
def test_a_job_that_is_handed_out_again_while_it_runs_is_done_once(soak):
    rng = random.Random(SEED)
    case = soak.case(JOBS, rng)
    base = case.body["audio_url"].rsplit("/", 1)[0].replace("/missing/", "/fine/")
    urls = {"video_url": f"{base}/clip25.mp4", "audio_url": f"{base}/long.wav"}
    case = Case(case.id, case.body | urls, 500, is_claimed=True)
    soak.cases[case.id] = case
    job = soak.orchestrator.jobs[soak.orchestrator.add_job(case.id, **case.body)]
    soak.orchestrator.wait_until(lambda: len(job.progress) > 1, END_S)
    soak.orchestrator.hand_out_again(case.id)
    soak.orchestrator.wait_until(lambda: len(job.accepted) > 0, END_S)
    assert (job.claims, job.worker_id) == (2, "box-1")  # both claims are one machine's
    assert (job.status, job.error) == ("succeeded", None)
    assert soak.app.job(case.id)["attempt"] == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_job_ends_once_and_nothing_grows(soak):
    started = time.monotonic()
    run_phase(soak, range(STORM), kills=True)
    assert_quiet(soak.app)
    run_phase(soak, range(STORM, STORM + SETTLE), kills=False)
    assert_quiet(soak.app)
    before = sizes(soak.app)
    run_phase(soak, range(STORM + SETTLE, JOBS), kills=False)
    assert_quiet(soak.app)
    after = sizes(soak.app)
    print(f"{JOBS} jobs in {time.monotonic() - started:.0f} s", dict(sorted(soak.seen.items())))
    for name in before:
        print(f"{name}: {before[name]} to {after[name]}")
    assert_ends(soak)
    assert_flat(before, after)
