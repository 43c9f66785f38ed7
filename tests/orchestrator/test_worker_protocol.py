"""The protocol of workers over a real socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve_app.contract.lenient import read_leniently
from tests.orchestrator.running import (
    DONE,
    Running,
    assert_error,
)

SYSTEM_INFO = {"cpu_cores_physical": 4, "cpu_model": "Test CPU", "download_speed_mbps": None}


def beat(service: Running, **fields: Any) -> dict[str, Any]:
    body = {
        "status": "idle",
        "current_job_id": None,
        "provider": "salad",
        "gpu_class": "RTX-3090-24GB",
        "worker_type": "main",
        "system_info": SYSTEM_INFO,
    }
    answer = service.worker.post("/internal/main/workers/w1/heartbeat", json=body | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# The worker's protocol -----------------------------------------------------------------------


def test_the_predecessors_main_worker_is_served_as_it_expects(service: Running) -> None:
    service.submit("job-1", aspect_ratio="9:16", resolution="720p")
    said = {"worker_type": "main", "gpu_class": "RTX-3090", "provider": "salad", "capacity": 1}
    registered = service.worker.post("/internal/main/workers/w1/register", json=said)
    assert registered.status_code == 200
    assert beat(service) == {"detail": "ok"}
    job = service.claim()
    assert job is not None
    fields = ("musetalk_job_id", "video_url", "audio_url", "aspect_ratio", "resolution")
    assert [job[name] for name in fields] == [
        "job-1",
        "https://media.example/v.mp4?signature=s",
        "https://media.example/a.wav?signature=s",
        "9:16",
        "720p",
    ]
    assert set(job) - set(fields) == {"attempt", "lease_s"}
    assert beat(service, status="busy", current_job_id="job-1") == {"detail": "ok"}
    counts = {"frames_done": 5, "frames_total": 10}
    assert service.report("job-1", metrics=counts, config_label="a", batch_size=8).json() == {
        "detail": "ok"
    }
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert (shown["status"], shown["progress"]["frames_done"]) == ("running", 5)
    for _ in range(2):  # the answer to the first one may have been lost
        assert service.report("job-1", **DONE).status_code == 200
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert (shown["status"], shown["output_url"]) == ("succeeded", DONE["output_url"])
    assert shown["metrics"] == DONE["metrics"]
    assert service.worker.post("/internal/main/jobs/claim", json={"worker_id": "w1"}).json() == {
        "job": None
    }


def test_the_predecessors_buffer_worker_is_served_as_it_expects(service: Running) -> None:
    service.submit("job-1")
    said = {"status": "idle", "gpu_class": "RTX-3090", "capacity": 2, "error": None}
    answer = service.worker.post("/internal/buffer/workers/b1/heartbeat", json=said)
    assert answer.json() == {"detail": "ok"}
    answer = service.worker.post("/internal/buffer/jobs/claim", json={"worker_id": "b1"})
    job = answer.json()["job"]
    assert set(job) == {
        "buffer_job_id",
        "musetalk_job_id",
        "video_url",
        "audio_url",
        "attempt",
        "lease_s",
    }
    progress = {"progress": 0.05, "phase": "downloading", "config_label": "a", "batch_size": 4}
    assert service.report("job-1", "b1", **progress).status_code == 200
    status = {
        "status": "succeeded",
        "error": None,
        "output_url": "https://f/x.mp4",
        "metrics": {"a": 1},
    }
    path = f"/internal/buffer/jobs/{job['buffer_job_id']}/status"
    assert service.worker.post(path, json=status).json() == {"detail": "ok"}
    assert service.status("job-1") == "succeeded"
    assert_error(
        service.worker.post("/internal/buffer/jobs/unknown/status", json=status),
        404,
        "job_not_found",
    )


def test_a_held_claim_is_answered_when_a_job_comes(service: Running) -> None:
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(service.claim, f"w{number}", wait_s=30) for number in range(3)]
        service.wait_for_held_claims(3)
        for number in range(3):
            service.submit(f"job-{number}")
        jobs = [future.result(timeout=20) for future in held]
    assert sorted(job["musetalk_job_id"] for job in jobs if job) == ["job-0", "job-1", "job-2"]


def test_a_held_claim_passes_a_job_on_that_is_not_for_it(service: Running) -> None:
    service.submit("job-1")
    assert service.claim("w0") is not None
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(service.claim, "w0", wait_s=30)
        service.wait_for_held_claims(1)
        second = pool.submit(service.claim, "w1", wait_s=30)
        service.wait_for_held_claims(2)
        service.report("job-1", "w0", status="failed", phase="failed", error="out of memory")
        job = second.result(timeout=20)
        assert job is not None
        assert job["attempt"] == 2
        service.submit("job-2")
        again = first.result(timeout=20)
    assert again is not None
    assert again["musetalk_job_id"] == "job-2"


def test_a_heartbeat_is_told_what_to_stop_and_whether_to_drain(service: Running) -> None:
    service.submit("job-1")
    service.claim()
    listed = {"jobs": [{"musetalk_job_id": "job-1", "attempt": 1}], "status": "busy"}
    assert beat(service, **listed) == {"detail": "ok", "cancel": [], "drain": False}
    assert service.admin.delete("/v1/avatar/jobs/job-1").json() == {
        "detail": "Cancellation requested"
    }
    assert service.admin.post("/v1/workers/w1/drain").status_code == 200
    assert beat(service, **listed) == {"detail": "ok", "cancel": ["job-1"], "drain": True}
    claim = {"worker_id": "w1", "worker_type": "main", "gpu_class": "x"}
    answer = service.worker.post("/internal/main/jobs/claim", json=claim).json()
    assert answer == {"job": None, "error": "This worker was asked to claim nothing more."}
    assert service.admin.delete("/v1/workers/w1/drain").status_code == 200
    (worker,) = service.admin.get("/v1/workers").json()["workers"]
    assert (worker["drain"], worker["provider"]) == (False, "salad")
    assert worker["system_info"] == SYSTEM_INFO
    assert_error(service.admin.post("/v1/workers/w9/drain"), 404, "worker_not_found")


def test_a_report_of_a_late_attempt_is_answered_409(service: Running) -> None:
    service.submit("job-1")
    service.claim("w1")
    assert service.worker.post("/internal/main/workers/w1/goodbye", json={}).status_code == 200
    service.claim("w2")
    for late in ({}, DONE, {"attempt": 1}, DONE | {"attempt": 2}):
        assert_error(service.report("job-1", "w1", **late), 409, "job_gone")
    assert_error(service.report("job-2", "w1"), 404, "job_not_found")
    assert service.report("job-1", "w2", **DONE, attempt=2).status_code == 200


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (None, "queued"),
        ({"error_type": "media_error", "code": "no_face", "retryable": False}, "failed"),
        ({"error_type": "media_error", "code": "download_failed", "retryable": True}, "queued"),
        ({"error_type": "processing_error", "code": "stage_failed"}, "queued"),
    ],
)
def test_a_failure_is_what_the_worker_says_it_is(
    service: Running, failure: dict[str, Any] | None, state: str
) -> None:
    service.submit("job-1")
    service.claim()
    said = {"status": "failed", "phase": "failed", "error": "It did not work.", "failure": failure}
    assert service.report("job-1", **said).status_code == 200
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert (shown["state"], shown["error"]) == (state, "It did not work.")
    assert shown["failure"] == failure
    assert shown["failures"] == (1 if state == "queued" else 0)


def test_a_success_without_its_result_is_a_failure(service: Running) -> None:
    service.submit("job-1")
    service.claim()
    assert service.report("job-1", **DONE | {"output_url": None}).status_code == 200
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()
    assert shown["state"] == "queued"
    assert "without an output_url" in shown["error"]
    assert service.claim("w1") is None  # that machine does not get it again
    (attempt,) = service.admin.get("/v1/avatar/jobs/job-1/attempts").json()["attempts"]
    assert (attempt["worker_id"], attempt["end"]) == ("w1", "failed")


def test_a_job_with_an_avatar_goes_to_workers_that_keep_avatars(service: Running) -> None:
    avatar_id = "0123456789abcdef" * 2
    service.submit("job-1", video_url=None, avatar_id=avatar_id)
    assert service.claim("w1") is None
    assert service.claim("w2", capabilities={"avatars": False}) is None
    job = service.claim("w3", capabilities={"avatars": True, "engines": ["warp"]})
    assert job is not None
    assert job["avatar_id"] == avatar_id
    assert "video_url" not in job
    shown = service.admin.get("/v1/avatar/jobs/job-1").json()["input"]
    assert (shown["avatar_id"], shown["video_url"]) == (avatar_id, None)
    request, _ = read_leniently(job)
    assert request.avatar_id == avatar_id  # as this project's worker reads it


@pytest.mark.parametrize(
    "fields",
    [
        {"avatar_id": "0123456789abcdef" * 2},  # and a video
        {"video_url": None},
        {"video_url": None, "avatar_id": "../x"},
        {"video_url": "avatar:0123456789abcdef0123456789abcdef"},
    ],
)
def test_a_job_has_either_a_video_or_an_avatar(service: Running, fields: dict[str, Any]) -> None:
    body = {"video_url": "https://m/v.mp4", "audio_url": "https://m/a.wav"} | fields
    assert_error(service.admin.post("/v1/avatar/jobs", json=body), 422, "invalid_request")
