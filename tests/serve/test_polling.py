"""A worker of a fleet: a real application on Ray polls an orchestrator over real sockets."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.contract.fake_orchestrator import FakeOrchestrator, answer
from tests.decoding import frames_of
from tests.serve.conftest import LEFTOVER_GRACE_S
from tests.serve.fleet_app import fleet_app
from tests.serve.running import JOB_S, START_S, media_server
from tests.serve.test_operator import metrics_address
from tests.waiting import until

pytestmark = pytest.mark.slow  # an application of its own

FRAMES_DRAWN = "ray_lipsync_frames_drawn_total{"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, private_temp):
    env = {
        "ALLOW_LOCAL_STORE": "true",
        "WORKER_ID": "box-1",
        "PROVIDER": "local",
        "POLL_INTERVAL_SEC": "0.5",
        "CONFIG_LABEL": "test",
    }
    folder, queue = tmp_path_factory.mktemp("worker"), {"max_concurrent_jobs": 2}
    pools = [{"name": "cpu", "replicas": 2, "num_cpus": 0.1}]
    with fleet_app(folder, env, host="::", queue=queue, pools=pools) as fleet:
        yield fleet


@pytest.fixture
def worker(fleet):
    return fleet[0]


@pytest.fixture
def orchestrator(fleet):
    return fleet[1]


@pytest.fixture
def media(clip, speech):
    return {
        "video_url": clip(frames=60).as_uri(),
        "audio_url": speech(3.0).as_uri(),
        "aspect_ratio": None,
        "resolution": None,
    }


@contextlib.contextmanager
def held(
    orchestrator: FakeOrchestrator, folder: Path, video: Path, until: Callable[[], bool]
) -> Iterator[str]:
    """Serve a video once something is so: jobs that fetch it last as long, on any machine."""
    (folder / "held.mp4").write_bytes(video.read_bytes())
    with media_server(folder, lambda path: orchestrator.wait_until(until, 90)) as base:
        yield f"{base}/held.mp4"


def test_a_claimed_job_is_done_and_reported(worker, orchestrator, media, tmp_path):
    job = orchestrator.jobs[orchestrator.add_job("claimed", **media)]
    orchestrator.wait_until(lambda: bool(job.accepted), 90)
    assert job.status == "succeeded"
    assert len(frames_of(worker.output({"output_url": job.output_url}, tmp_path))) == 75
    assert job.metrics["engine"] == "warp"
    [report] = job.accepted
    assert report["receipt"]["frames"] == 75
    assert "receipt" not in job.metrics
    phases = [report["phase"] for report in job.progress]
    assert "inferring" in phases
    drawn = [r["metrics"]["frames_total"] for r in job.progress if r["phase"] == "inferring"]
    assert set(drawn) <= {0, 75}
    [beat] = {call.body["worker_type"] for call in orchestrator.of("heartbeat")}
    assert beat == "main"


def test_a_job_is_drawn_by_all_replicas_of_its_pool(worker, orchestrator, media, speech):
    def running() -> int:
        [pool] = worker.client.get("/health").json()["pools"]
        return int(pool["running"])

    until(lambda: running() == 2, "two replicas do not run", START_S)
    longer = media | {"audio_url": speech(20.0).as_uri()}
    job = orchestrator.jobs[orchestrator.add_job("shared", **longer)]
    orchestrator.wait_until(lambda: bool(job.accepted), 90)

    def drawn() -> list[float]:
        """The frames that each replica has drawn, as the metrics say."""
        lines = httpx.get(metrics_address(worker), trust_env=False).text.splitlines()
        return [float(x.split()[-1]) for x in lines if x.startswith(FRAMES_DRAWN)]

    until(lambda: sum(drawn()) >= 500, lambda: f"{drawn()} were drawn", 60, pause_s=0.5)
    assert len(drawn()) == 2 and min(drawn()) >= 50


def test_two_jobs_at_a_time_are_one_workers(worker, orchestrator, media, clip, tmp_path):
    """Mend 1.5: one identity in every call, and heartbeats that name both jobs."""

    def are_named() -> bool:
        beats = [call.body["jobs"] for call in orchestrator.of("heartbeat")]
        return {"left", "right"} in [{job["musetalk_job_id"] for job in named} for named in beats]

    names = ("left", "right")
    with held(orchestrator, tmp_path, clip(frames=60), are_named) as url:
        both = media | {"video_url": url}
        jobs = [orchestrator.jobs[orchestrator.add_job(name, **both)] for name in names]
        orchestrator.wait_until(lambda: all(job.accepted for job in jobs), 120)
    assert {(job.worker_id, job.status) for job in jobs} == {("box-1", "succeeded")}
    named = {call.path.split("/")[4] for call in orchestrator.of("heartbeat")}
    assert named == {"box-1"}
    assert {call.body["capacity"] for call in orchestrator.of("register")} == {2}


def test_bad_input_is_reported_with_its_own_words(worker, orchestrator, media):
    job_id = orchestrator.add_job("bad", **media | {"video_url": media["audio_url"]})
    job = orchestrator.jobs[job_id]
    orchestrator.wait_until(lambda: bool(job.accepted), 60)
    assert job.status == "failed"
    assert "picture" in job.error
    assert "HTTP" not in job.error


def test_a_job_that_was_reassigned_is_stopped(worker, orchestrator, media, speech):
    long = media | {"audio_url": speech(60.0).as_uri()}
    job = orchestrator.jobs[orchestrator.add_job("reassigned", **long)]
    orchestrator.wait_until(lambda: any(r["phase"] == "inferring" for r in job.progress), 60)
    orchestrator.cancel("reassigned")
    worker.wait_for("reassigned", "cancelled")
    assert job.accepted == []
    until(lambda: worker.scratch == [], lambda: f"{worker.scratch} has not gone", LEFTOVER_GRACE_S)


def test_the_same_claim_twice_is_done_once_and_answered_twice(worker, orchestrator, media):
    job = orchestrator.jobs[orchestrator.add_job("twice", **media)]
    orchestrator.wait_until(lambda: len(job.accepted) == 1, 90)
    orchestrator.hand_out_again("twice")
    orchestrator.wait_until(lambda: len(orchestrator.of("claim")) > 0 and job.claims == 2, 30)
    worker.wait_for("twice", "succeeded")
    assert worker.job("twice")["attempt"] == 1


def test_heartbeats_go_on_through_a_job_and_through_errors(
    worker, orchestrator, media, clip, tmp_path
):
    errors = (500, 503, 404)

    def go_on() -> bool:
        beats = [(call.status, call.body["status"]) for call in orchestrator.of("heartbeat")]
        is_over = set(errors) <= {status for status, _ in beats}
        return is_over and beats[-3:] == [(200, "busy")] * 3

    orchestrator.plan("heartbeat", *map(answer, errors))
    with held(orchestrator, tmp_path, clip(frames=60), go_on) as url:
        job = orchestrator.jobs[orchestrator.add_job("beating", **media | {"video_url": url})]
        orchestrator.wait_until(lambda: bool(job.accepted), 120)
    assert job.status == "succeeded"


def test_a_report_waits_for_the_orchestrator_to_come_back(worker, orchestrator, media):
    job = orchestrator.jobs[orchestrator.add_job("later", **media)]
    orchestrator.wait_until(lambda: any(r["phase"] == "inferring" for r in job.progress), 60)
    orchestrator.go_away()
    worker.wait_for("later", "succeeded")
    orchestrator.come_back()
    orchestrator.wait_until(lambda: bool(job.accepted), 60)
    assert (job.status, len(job.accepted)) == ("succeeded", 1)


@pytest.mark.slow
def test_killing_the_ingress_does_not_lose_the_claim(worker, orchestrator, media, speech):
    longer = media | {"audio_url": speech(20.0).as_uri()}
    job = orchestrator.jobs[orchestrator.add_job("resumed", **longer)]
    orchestrator.wait_until(lambda: any(r["phase"] == "inferring" for r in job.progress), 60)
    worker.kill("Ingress")
    orchestrator.wait_until(lambda: bool(job.accepted), 120)
    assert (job.status, len(job.accepted)) == ("succeeded", 1)
    assert worker.job("resumed")["status"] == "succeeded"


def test_a_stop_lets_all_replicas_end_the_job_and_reports_it(worker, orchestrator, media, speech):
    """The last test of this module, since it ends the worker."""
    longer = media | {"audio_url": speech(20.0).as_uri()}
    job = orchestrator.jobs[orchestrator.add_job("last", **longer)]
    worker.wait_for("last", "running")
    worker.wait_drawn("last")
    seen = len(worker.log)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(JOB_S) == 0
    assert (job.status, len(job.accepted)) == ("succeeded", 1)
    [report] = job.accepted
    assert report["receipt"]["frames"] == 500
    assert report["receipt"]["retries"] == {"segments": 0, "frames": 0}
    assert not [line for line in worker.log[seen:] if "Traceback" in line]
