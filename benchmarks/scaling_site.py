"""The application that scaling.py measures: deployed on real Ray, with stages of fixed latency."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
from latency_stages import JOURNAL, stage_kinds
from media import make_clip, make_speech

FPS, SIZE, BLOCK_FRAMES = 10, (128, 128), 20
LONG_S, SHORT_S = 60, 2
START_S, JOB_S = 120.0, 600.0
DRAWING = ("encode", "generate")  # the calls that occupy a replica
OPTIONS = {"preset": "ultrafast"}


@dataclass(frozen=True)
class Call:
    """One call of a replica, times in Unix seconds. `pool`: empty for the Finisher. `replica`: the
    id of its process.
    """

    kind: str
    pool: str
    frames: int
    replica: int
    began: float
    ended: float


@dataclass(frozen=True)
class Run:
    """One job, or several at once. `cpu_s`: by deployment; `Ray` is all else."""

    began: float
    wall_s: float
    cpu_s: dict[str, float]
    calls: tuple[Call, ...]

    @property
    def engine_s(self) -> float:
        """How long the engines worked, together."""
        return sum(call.ended - call.began for call in self.calls if call.kind in DRAWING)

    @property
    def lead_s(self) -> float:
        """How long no engine had work at the start."""
        return min(call.began for call in self.calls if call.kind in DRAWING) - self.began

    @property
    def gaps_s(self) -> list[float]:
        """How long replicas had nothing to do between two calls."""
        drawing: dict[int, list[Call]] = {}
        for call in sorted(self.calls, key=lambda call: call.began):
            if call.kind in DRAWING:
                drawing.setdefault(call.replica, []).append(call)
        return [
            max(0.0, after.began - before.ended)
            for calls in drawing.values()
            for before, after in pairwise(calls)
        ]

    @property
    def rest_s(self) -> float:
        """How long it took after the engines had ended."""
        ended = max(call.ended for call in self.calls if call.kind in DRAWING)
        return self.began + self.wall_s - ended


class Site:
    """The application as it is deployed now, and files to send."""

    def __init__(self, folder: Path, segment_s: float) -> None:
        self.folder, self.journal = folder, folder / "calls"
        self.frames_per_s = BLOCK_FRAMES / segment_s
        self.port = _free_port()
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=JOB_S, trust_env=False,
            limits=httpx.Limits(max_connections=64),
        )  # fmt: skip
        os.environ[JOURNAL] = str(self.journal)
        width, height = SIZE
        self.long, self.short = folder / "long", folder / "short"
        for path, seconds in ((self.long, LONG_S), (self.short, SHORT_S)):
            make_clip(path.with_suffix(".mp4"), width, height, seconds * FPS, FPS)
            make_speech(path.with_suffix(".wav"), seconds + 0.01)

    def deploy(self, *pools: dict[str, Any]) -> None:
        """Run the application with these pools, and wait until all their replicas run."""
        from ray import serve

        from serve_app.app import StageKinds, bind_app
        from serve_app.config.settings import APP_NAME, AppArgs

        app = bind_app(AppArgs.model_validate(self._args(pools)), StageKinds(*stage_kinds()))
        serve.run(app, name=APP_NAME, route_prefix="/")
        self._until_running(sum(pool["replicas"] for pool in pools))

    def deploy_scaled(self, scaling: dict[str, float], *pools: dict[str, Any]) -> None:
        """Run the application with pools that follow the work, as `make serve` deploys it.

        PYTHONPATH has to contain this folder since Ray began.
        """
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        from serve_app.config.settings import APP_NAME

        with contextlib.suppress(KeyError):
            serve.delete(APP_NAME)
        application = {
            "name": APP_NAME,
            "route_prefix": "/",
            "import_path": "latency_app:build_app",
            "autoscaling_policy": {"policy_function": "serve_app.scaling.policy:follow_work"},
            "args": self._args(pools) | {"scaling": scaling},
        }
        config = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(config, _blocking=True)
        self._until_running(sum(pool["replicas"] for pool in pools))

    def _args(self, pools: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "engine": "warp",
            "landmarks": "mesh",
            "pools": [{"num_cpus": 0.01, **pool} for pool in pools],
            "ingress_cpus": 0.1,
            "preprocessor": {"num_cpus": 0.1},
            "finisher": {"num_cpus": 0.1},
            "work_dir": str(self.folder / "work"),
            "result_dir": str(self.folder / "results"),
            "state_dir": str(self.folder / "state"),
            "queue": {"max_concurrent_jobs": 16, "max_queued_jobs": 100},
            "inputs": {"allowed_folders": [str(self.folder)]},
            "avatars": {"max_gb": 0},  # all jobs have the same video
        }

    def generate(self, media: Path) -> float:
        """Do one job with files of that name; return when it was asked for."""
        began = time.time()
        body = {
            "musetalk_job_id": uuid.uuid4().hex,
            "video_url": media.with_suffix(".mp4").as_uri(),
            "audio_url": media.with_suffix(".wav").as_uri(),
            "params": OPTIONS,
        }
        answer = self.client.post("/generate", json=body)
        if answer.status_code != 200:
            raise RuntimeError(answer.text)
        return began

    def run(self, work: Callable[[], object]) -> Run:
        """Do some work and return what it took."""
        self.journal.write_text("")
        before, began = cpu_by_deployment(), time.time()
        work()
        wall_s, after = time.time() - began, cpu_by_deployment()
        cpu_s = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
        return Run(began, wall_s, cpu_s, tuple(self._calls()))

    def _calls(self) -> Iterator[Call]:
        for line in self.journal.read_text().splitlines():
            yield Call(**json.loads(line))

    def _until_running(self, generators: int) -> None:
        from ray import serve

        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                [app] = serve.status().applications.values()
                running = sum(
                    deployment.replica_states.get("RUNNING", 0)
                    for name, deployment in app.deployments.items()
                    if name.startswith("Generator")
                )
                stopping = any(d.replica_states.get("STOPPING") for d in app.deployments.values())
                ready = self.client.get("/hc", timeout=5.0).status_code == 200
                if ready and running == generators and not stopping:
                    return
            time.sleep(0.2)
        raise RuntimeError("the application does not become ready")


def at_once(site: Site, media: Sequence[Path]) -> None:
    """Do jobs at the same time."""
    with ThreadPoolExecutor(len(media)) as threads:
        list(threads.map(site.generate, media))


def cpu_by_deployment() -> dict[str, float]:
    """Return the CPU seconds of this run's Ray so far; pools count together."""
    seconds: Counter[str] = Counter()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_TMPDIR") != os.environ["RAY_TMPDIR"]:
                continue
            title = " ".join(process.cmdline()).split(":lipsync:")
            name = re.split(r"[-#:. ]", title[1])[0] if len(title) > 1 else "Ray"
            if process.pid != os.getpid():
                times = process.cpu_times()
                children = times.children_user + times.children_system
                seconds[name] += times.user + times.system + children
    return dict(seconds)


def _free_port() -> int:
    from serve_app.config.ports import free_port

    return free_port("127.0.0.1")
