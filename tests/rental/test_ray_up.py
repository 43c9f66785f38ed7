"""A real `ray up … ray down` on machines that are network namespaces.

The launcher, the monitor, SSH, the NodeProvider and RunPod's client are the real ones, and so is
the application. Only RunPod itself is made of this computer (pod_cloud.py).
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.decoding import frames_of
from tests.rental.namespaces import OPERATOR, Segment, segment, why_not
from tests.rental.operator_rig import ANSWER_S, SCARCE_GPU, Operator, operator
from tests.rental.pod_cloud import PodCloud, pod_cloud
from tests.serve.running import LOSSLESS
from tests.waiting import until

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UP_S, JOB_S, NODE_S, DOWN_S = 180.0, 240.0, 180.0, 120.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Operator]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with segment(tmp_path, machines=5) as made, pod_cloud(made) as cloud:
        yield operator(made, cloud, tmp_path)


@pytest.fixture
def media(rig: Operator, clip: Any, speech: Any, tmp_path: Path) -> Iterator[str]:
    """Serve a clip and speech at the operator's address; return the address."""
    folder = tmp_path / "media"
    folder.mkdir()
    shutil.copy(clip(frames=50), folder / "clip.mp4")
    shutil.copy(speech(6.0), folder / "speech.wav")
    with serving(rig.segment, folder) as port:
        yield f"http://{OPERATOR}:{port}"


class serving:
    """A server of files at the operator's address, for the length of the block."""

    def __init__(self, segment: Segment, folder: Path) -> None:
        listening = segment.listen()
        handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
        self._server = ThreadingHTTPServer(
            listening.getsockname(), handler, bind_and_activate=False
        )
        self._server.socket.close()
        self._server.socket = listening
        self._port = int(listening.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> int:
        self._thread.start()
        return self._port

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_a_cluster_from_up_to_down(rig: Operator, media: str, tmp_path: Path) -> None:
    cloud = rig.cloud
    cloud.taken.add(SCARCE_GPU)

    up = rig.cluster("up", UP_S)
    assert (up["monitor_error"], [one["node_type"] for one in up["machines"]]) == ("", ["head"])

    job = draw_a_job(rig, media)
    frames = {one["pool"]: one["frames"] for one in job["metrics"]["receipt"]["pools"]}
    assert frames["ada"] > 0 and frames["ampere"] > 0, frames
    assert sum(frames.values()) == 150
    assert fetched_frames(rig, job, tmp_path) == 150

    # There is no machine for this one; meanwhile, everything else goes on.
    waits = rig.popen(*rig.task("blackwell"))
    [ada] = cloud.of_type("ada")
    assert rig.run_task("ada", NODE_S) == ada
    cloud.lose(ada)
    replacement = rig.run_task("ada", NODE_S)
    assert replacement != ada and replacement in cloud.machines
    assert_no_capacity_is_said_and_seldom_asked_for(rig, cloud)
    os.killpg(waits.pid, signal.SIGKILL)  # with its SSH, which would wait for the task for ever
    waits.communicate()

    logger.info("the head is lost")
    [head], [ampere] = cloud.of_type("head"), cloud.of_type("ampere")
    cloud.lose(head)
    rig.run("ray", "up", "-y", "--no-config-cache", str(rig.file), deadline_s=UP_S)
    workers = {replacement, ampere}
    until(
        lambda: workers <= rig.in_cluster(),
        lambda: f"{workers} are not in the cluster: {rig.cluster('status', 60.0)}",
        NODE_S,
        pause_s=1.0,
    )

    rig.run("ray", "down", "-y", str(rig.file), deadline_s=DOWN_S)
    assert cloud.machines == {}
    assert rig.cluster("sweep", DOWN_S) == {"returned": []}


def test_a_monitor_that_dies_at_once_is_reported(rig: Operator) -> None:
    """Ray itself ends with 0 there, and no worker ever comes."""
    rig.change("head_start_ray_commands", "RAY_AUTH_MODE", "PYTHONPATH=/nowhere RAY_AUTH_MODE")
    rig.change("head_start_ray_commands", "serve deploy", "echo serve deploy")
    process = rig.popen("lipsync", "cluster", "up", str(rig.file), "--json")
    printed, _ = process.communicate(timeout=UP_S)
    assert process.returncode == 1, printed
    assert "its monitor has ended" in printed and "No module named 'cluster'" in printed, printed
    rig.cluster("down", DOWN_S)
    assert rig.cloud.machines == {}


def draw_a_job(rig: Operator, media: str) -> dict[str, Any]:
    """Have a job drawn by pools that have no node yet, and return it."""

    def is_ready() -> bool:
        return rig.request("GET", "/hc").status_code == 200

    until(lambda: quietly(is_ready), rig.serve_status, UP_S, pause_s=0.5)
    body = {
        "musetalk_job_id": "both",
        "video_url": f"{media}/clip.mp4",
        "audio_url": f"{media}/speech.wav",
        "params": LOSSLESS,
    }
    answer = rig.request("POST", "/v1/avatar/jobs", json=body)
    assert answer.status_code == 202, answer.text

    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = rig.request("GET", "/v1/avatar/jobs/both").json()
        return job if job["status"] in ("succeeded", "failed") else None

    logger.info("the application is ready")
    job = until(ended, lambda: f"{rig.request('GET', '/health').text}", JOB_S, pause_s=0.5)
    logger.info("the job has ended")
    assert job["status"] == "succeeded", job
    return job


def quietly(is_so: Any) -> bool:
    """Return whether something is so; what cannot be reached is not."""
    import httpx

    try:
        return bool(is_so())
    except httpx.TransportError:
        return False


def fetched_frames(rig: Operator, job: dict[str, Any], folder: Path) -> int:
    """Return how many frames the output of a job has."""
    path = job["output_url"].partition("/files/")
    file = folder / "output.mp4"
    file.write_bytes(rig.request("GET", f"/files/{path[2]}").raise_for_status().content)
    return len(frames_of(file))


def assert_no_capacity_is_said_and_seldom_asked_for(rig: Operator, cloud: PodCloud) -> None:
    failures = rig.cluster("status", ANSWER_S)["failures"]
    assert any(one.startswith("blackwell: ") for one in failures), failures
    bodies = [one.body for one in cloud.requests if one.method == "POST"]
    asked = [body for body in bodies if body["gpu"]["id"] == SCARCE_GPU]
    # Ray tries every 5 s; the pauses begin with 20 s and double.
    assert 1 <= len(asked) <= 4
