"""Mend 1.3: a worker that is pushed to (Salad's queue) tells its orchestrator of its jobs."""

import pytest

from tests.serve.fleet_app import fleet_app
from tests.waiting import until


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, private_temp):
    env = {"WORKER_MODE": "Queue", "SALAD_MACHINE_ID": "box-1", "LEGACY_SIZE": "source"}
    with fleet_app(tmp_path_factory.mktemp("queue"), env) as fleet:
        yield fleet


@pytest.mark.slow
def test_a_pushed_job_is_done_and_reported_and_nothing_is_claimed(fleet, clip, speech):
    worker, orchestrator = fleet
    orchestrator.add_job("waits")  # a poller would take it
    job = orchestrator.jobs[orchestrator.add_job("pushed")]
    orchestrator._queue.remove("pushed")
    job.status, job.worker_id = "running", "box-1"  # Salad's queue has it from the orchestrator
    media = {"video_url": clip(frames=60).as_uri(), "audio_url": speech(2.0).as_uri()}
    answer = worker.generate(musetalk_job_id="pushed", **media)
    assert answer.status_code == 200
    orchestrator.wait_until(lambda: bool(job.accepted), 90)
    assert (job.status, job.output_url) == ("succeeded", answer.json()["output_url"])
    assert job.metrics["total_time"] == answer.json()["metrics"]["total_time"]
    phases = list(dict.fromkeys(report["phase"] for report in job.progress))
    assert phases[:2] == ["downloading", "inference"]
    assert {"inferring", "uploading"} <= set(phases)
    assert all(report["batch_size"] == 1 for report in job.progress)
    assert {call.kind for call in orchestrator.calls} == {"progress", "final"}
    until(  # Ray brings lines with a delay
        lambda: any("which only this machine can open" in line for line in worker.log),
        lambda: "\n".join([*worker.log[-50:], "The log has no line about the links"]),
        60,
    )
