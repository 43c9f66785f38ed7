"""Pools follow the work on real Ray: from zero, under a constant load, and back to zero."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from demo.application import session_processes
from tests.decoding import frames_of
from tests.serve.running import ROOT, RunningApp, running_app
from tests.waiting import until

pytestmark = pytest.mark.slow

POOL = {"name": "cpu", "replicas": 0, "max_replicas": 3, "num_cpus": 0.1, "frames_per_s": 10.0}
# Would be the better one, and no node has its label.
GHOST = POOL | {"name": "ghost", "arch": "hopper", "frames_per_s": 1000.0}
NO_NODE = "no live node has the label musetalk/arch=hopper"
# As quick as one can look at: with weights to load, minutes are right.
SCALING = {"drain_s": 2.0, "idle_s": 6.0, "idle_loads": 1.0, "load_s": 2.0, "job_frames": 25}
WAIT_S = 120.0


@dataclass
class Watched:
    """What `/health` said about the pool, from the first look to the last."""

    app: RunningApp
    looks: list[dict[str, Any]] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def look(self) -> dict[str, Any]:
        ghost, cpu = health(self.app)["pools"]
        assert (ghost["wanted"], ghost["running"]) == (0, 0)
        self.looks.append(cpu)
        return cpu

    def steps(self, key: str) -> list[int]:
        """Return how a number changed."""
        return [number for number, _ in groupby(look[key] for look in self.looks)]

    def until(self, condition: Any) -> None:
        """Look until something is true of a look."""
        deadline = time.monotonic() + WAIT_S
        while not condition(self.look()):
            assert time.monotonic() < deadline, self.looks[-1]
            time.sleep(0.1)

    @contextmanager
    def all_the_time(self) -> Iterator[None]:
        """Look in a thread of its own as long as the context lasts."""

        def keep_looking() -> None:
            while not self._done.wait(0.1):
                self.look()

        thread = threading.Thread(target=keep_looking)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()


def health(app: RunningApp) -> dict[str, Any]:
    body: dict[str, Any] = app.client.get("/health").json()
    return body


def gcs_address(app: RunningApp) -> str:
    """Return the address of the application's cluster; `auto` could find another one."""
    for process in session_processes(app.ray_folder):
        with contextlib.suppress(psutil.Error):
            found = re.search(r"--gcs-address=(\S+)", " ".join(process.cmdline()))
            if found:
                return found[1]
    raise LookupError("no process of the cluster names its address")


def deploy(app: RunningApp, user_config: dict[str, Any]) -> None:
    """Deploy the same configuration with another `user_config` of the ingress."""
    path = app.folder / "serve_config.yaml"
    document = yaml.safe_load(path.read_text())
    deployments = [{"name": "Ingress", "user_config": user_config}]
    document["applications"][0]["deployments"] = deployments
    [ingress] = app.replicas("Ingress")
    theirs = {name: value for name, value in ingress.environ().items() if name.startswith("RAY_")}
    theirs["RAY_ADDRESS"] = gcs_address(app)
    code = (
        "import json, sys, ray\n"
        "from ray.serve.context import _get_global_client\n"
        "from ray.serve.schema import ServeDeploySchema\n"
        "ray.init(namespace='serve', log_to_driver=False)\n"
        "config = ServeDeploySchema.model_validate(json.load(sys.stdin))\n"
        "_get_global_client().deploy_apps(config, _blocking=True)\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=json.dumps(document).encode(),
        env=os.environ | theirs,
        cwd=ROOT,
        check=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory, private_temp: Path) -> Iterator[RunningApp]:
    folder = tmp_path_factory.mktemp("scaled")
    env = {"RAY_OVERRIDE_LABELS": json.dumps({"machine": "this"})}
    with running_app(folder, env=env, pools=[GHOST, POOL], scaling=SCALING) as app:
        until(
            lambda: health(app)["pools"][0]["reason"] == NO_NODE,
            lambda: f"nothing says that the pool has no node: {health(app)}",
            WAIT_S,
        )
        yield app
    # A handle that reports to Serve's controller after Ray's end would have started Ray again.
    assert not [line for line in app.log if "metrics task" in line or "address local" in line]


@pytest.fixture
def media(clip: Any, speech: Any) -> dict[str, str]:
    return {"video_url": clip(frames=50).as_uri(), "audio_url": speech(16.0).as_uri()}


def test_a_pool_starts_from_zero_draws_and_goes_back_to_zero_without_a_flap(
    scaled: RunningApp, media: dict[str, str], tmp_path: Path
) -> None:
    """Finding 9: Ray's scaling by requests saw no backlog, so it began late, and flapped."""
    watched = Watched(scaled)
    assert watched.look()["running"] == 0
    jobs = [f"burst-{index}" for index in range(4)]
    with watched.all_the_time():
        for job in jobs:
            answer = scaled.client.post("/v1/avatar/jobs", json={"musetalk_job_id": job, **media})
            assert answer.status_code == 202
        for job in jobs:
            ended = scaled.wait_for(job, "succeeded", "failed")
            assert ended["status"] == "succeeded", ended["error"]
            assert len(frames_of(scaled.output(ended, tmp_path))) == 400
    watched.until(lambda look: look["running"] == look["wanted"] == 0)
    wanted = watched.steps("wanted")
    peak = wanted.index(max(wanted))
    assert max(wanted) == 3, wanted
    assert wanted[: peak + 1] == sorted(wanted[: peak + 1]), wanted
    assert wanted[peak:] == sorted(wanted[peak:], reverse=True), wanted
    assert watched.looks[-1]["load_s"] != SCALING["load_s"]


def test_a_constant_load_keeps_what_it_started(scaled: RunningApp, media: dict[str, str]) -> None:
    """Each job is over before the next one comes, so that often nothing at all waits."""
    watched = Watched(scaled)
    with watched.all_the_time():
        for index in range(6):
            answer = scaled.generate(musetalk_job_id=f"constant-{index}", **media)
            assert answer.status_code == 200, answer.text
    wanted = watched.steps("wanted")
    assert wanted[-1] >= 1 and wanted == sorted(wanted), wanted


def test_a_change_of_user_config_restarts_no_replica(
    scaled: RunningApp, media: dict[str, str]
) -> None:
    body = {"musetalk_job_id": "held", **media}
    assert scaled.client.post("/v1/avatar/jobs", json=body).status_code == 202
    scaled.wait_drawn("held")
    # A pool gives up no replica while one has a segment, however long the deployments take.
    with scaled.drawing_stopped():
        until(lambda: health(scaled)["pools"][1]["frames_in_flight"] > 0, "nothing is drawn")
        change_user_config(scaled)
    assert scaled.wait_for("held", "succeeded", "failed")["status"] == "succeeded"


def change_user_config(scaled: RunningApp) -> None:
    before = pids(scaled)
    assert len(before["Generator-cpu"]) >= 1
    deploy(scaled, {"policy": "cheapest", "pools": {"cpu": {"usd_per_hour": 1.5}}})
    assert_running(scaled, before)
    deploy(scaled, {"pools": {"ghots": {"is_on": False}}})
    until(
        lambda: health(scaled).get("user_config_fault", "").endswith("did you mean `ghost`?"),
        lambda: f"/health has not named the fault: {health(scaled)}",
    )
    deploy(scaled, {"pools": {"ghost": {"is_on": False}}})
    until(
        lambda: health(scaled)["pools"][0]["reason"] == "switched off by user_config",
        lambda: f"the pool is not switched off: {health(scaled)}",
    )
    assert "user_config_fault" not in health(scaled)
    assert_running(scaled, before)


def test_a_pool_that_no_node_can_take_is_logged_once_with_the_remedy(scaled: RunningApp) -> None:
    said = [line for line in scaled.log if "Generator-ghost cannot run" in line]
    assert len(said) == 1
    assert NO_NODE in said[0] and "--labels musetalk/arch=hopper" in said[0]


def pids(app: RunningApp) -> dict[str, set[int]]:
    """Return the processes of the replicas that a change could restart."""
    names = ("Ingress", "Preprocessor", "Finisher", "Generator-cpu")
    return {name: {found.pid for found in app.replicas(name)} for name in names}


def assert_running(app: RunningApp, before: dict[str, set[int]]) -> None:
    """Check that the replicas of before still run. The pool may have grown meanwhile."""
    now = pids(app)
    assert now["Generator-cpu"] >= before["Generator-cpu"]
    assert now | {"Generator-cpu": before["Generator-cpu"]} == before
