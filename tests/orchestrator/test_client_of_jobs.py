"""The client for Python in front of an orchestrator, which serves the same job API as a worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from lipsync_client import Job, JobFailed, LipsyncClient, NotSupported
from tests.orchestrator.running import ADMIN_KEY, DONE, Running

VIDEO, AUDIO = "https://media.example/v.mp4", "https://media.example/a.wav"


def test_a_job_is_submitted_followed_and_cancelled(service: Running) -> None:
    seen: list[Job] = []
    with LipsyncClient(service.url, ADMIN_KEY) as client, ThreadPoolExecutor(1) as threads:
        job = client.submit(VIDEO, AUDIO, resolution="720p")
        waiting = threads.submit(client.wait, job.id, seen.append, timeout_s=60.0)
        claimed = service.claim()
        assert claimed is not None and claimed["musetalk_job_id"] == job.id
        assert service.report(job.id).status_code == 200
        assert service.report(job.id, **DONE).status_code == 200
        assert waiting.result().output_url == DONE["output_url"]
        assert seen[-1].status == "succeeded"
        assert {one.status for one in seen} <= {"queued", "running", "succeeded"}

        other = client.submit(VIDEO, AUDIO)
        client.cancel(other.id)
        with pytest.raises(JobFailed) as raised:
            client.wait(other.id, timeout_s=60.0)
        assert raised.value.job.status == "cancelled"
        assert [one.id for one in client.jobs(limit=10)] == [other.id, job.id]
        with pytest.raises(NotSupported, match="estimates"):
            client.estimate(VIDEO, AUDIO)
