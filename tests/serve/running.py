"""A real application for tests: the launcher as a child, its HTTP side, its videos."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from demo.application import session_processes, stop
from serve_app.config.ports import free_port
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
START_S, JOB_S = 240.0, 180.0
# What the application that most tests share signs its webhooks with.
WEBHOOK_SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
EARLY_CALLS = (
    ("POST", "/generate"),
    ("GET", "/v1/avatar/jobs"),
    ("GET", "/files/x.mp4"),
    ("GET", "/health"),
    ("GET", "/hc"),
)
# What a job sends whose frames are compared bit by bit. x264's lossy modes are not quite a function
# of their input: on some processors one encoding in a hundred of the same frames differs a little.
LOSSLESS = {"crf": 0, "preset": "ultrafast"}
# What a developer's shell may hold and what a test must not read.
NOT_FOR_TESTS = (
    "ORCHESTRATOR_BASE_URL", "BUFFER_ORCHESTRATOR_BASE_URL", "BUFFER_WORKER_ID", "WORKER_MODE",
    "WORKER_TYPE", "INGRESS_API_KEY", "ALLOW_ANONYMOUS", "LEGACY_SIZE",
    "INTERNAL_API_KEY", "WORKER_TOKEN", "B2_KEY_ID", "B2_APP_KEY", "B2_BUCKET_NAME",
    "WORKER_PORT", "RAY_AUTH_MODE", "ALLOW_LOCAL_STORE", "MUSETALK_WORKDIR",
    "MUSETALK_RESULT_DIR", "MUSETALK_UNET_MODEL_PATH", "ALLOWED_SOURCE_HOSTS",
)  # fmt: skip


@dataclass
class RunningApp:
    """One launcher. `folder` holds its state, scratch, results and log."""

    folder: Path
    port: int
    ray_folder: Path
    process: subprocess.Popen[bytes]
    key: str | None = None
    early: list[tuple[str, httpx.Response]] = field(default_factory=list)
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {} if self.key is None else {"X-Internal-API-Key": self.key}
        base = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=base, timeout=JOB_S, headers=headers, trust_env=False)

    @property
    def log(self) -> list[str]:
        """The lines that it has printed so far."""
        return (self.folder / "log").read_text().splitlines()

    @property
    def scratch(self) -> list[str]:
        """Names of the attempts whose files are still there."""
        return [path.name for path in (self.folder / "work" / "jobs").iterdir()]

    def wait_ready(self) -> None:
        """Wait for /hc, and show the log if it never comes."""
        until(
            lambda: self._is_ready() or self.process.poll() is not None,
            lambda: f"{self._last_of_log()}\nThe application was not ready",
            START_S,
            pause_s=0.2,
        )
        assert self.process.poll() is None, f"{self._last_of_log()}\nThe application has ended"

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/hc", timeout=5.0).status_code == 200
        return False

    def _last_of_log(self) -> str:
        return (self.folder / "log").read_text()[-4000:]

    def watch_start(self) -> None:
        """As `wait_ready`, and keep in `early` what routes answer from the first connection on."""
        with httpx.Client(base_url=self.client.base_url, trust_env=False, timeout=30.0) as visitor:
            until(
                lambda: self._visit(visitor) == 200 or self.process.poll() is not None,
                lambda: f"{self._last_of_log()}\nThe application was not ready",
                START_S,
                pause_s=0.05,
            )
        self.wait_ready()

    def _visit(self, visitor: httpx.Client) -> int:
        """Make the early calls and return the status of `/hc`; 0 while the port does not listen."""
        status = 0
        for method, path in EARLY_CALLS:
            try:
                answer = visitor.request(method, path)
            except httpx.ConnectError:
                break
            self.early.append((path, answer))
            status = answer.status_code if path == "/hc" else status
        return status

    def generate(self, **body: Any) -> httpx.Response:
        """Do a job by POST /generate."""
        return self.client.post("/generate", json=body)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job's state; nothing if there is no such job (yet), or no ingress now.

        The body of a refusal is none: its `status` is `failed`, as that of a job may be.
        """
        answer = self.client.get(f"/v1/avatar/jobs/{job_id}")
        if answer.status_code in (404, 503):
            return {}
        job: dict[str, Any] = answer.raise_for_status().json()
        return job

    def wait_for(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """Wait until a job has one of the statuses."""

        def found() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job.get("status") in statuses else None

        return until(
            found,
            lambda: f"{job_id} is {self.job(job_id)} and was not {statuses}",
            JOB_S,
            pause_s=0.1,
        )

    def wait_drawn(self, job_id: str, frames: int = 1) -> None:
        """Wait until some frames of a job are done and it is still running."""

        def is_drawn() -> bool:
            job = self.job(job_id)
            has_ended = job.get("status") in ("succeeded", "failed", "cancelled")
            assert not has_ended, f"{job_id} ended too early for this test: {job}"
            return bool(job.get("progress", {}).get("frames_done", 0) >= frames)

        until(is_drawn, f"{job_id} has not drawn {frames} frames", JOB_S)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment's replicas."""
        title = f"ray::ServeReplica:lipsync:{deployment}"
        found = []
        for process in session_processes(self.ray_folder):
            with contextlib.suppress(psutil.Error):
                if any(part.startswith(title) for part in process.cmdline()):
                    found.append((process, process.ppid()))
        # A child that a replica has just forked, to become ffmpeg, bears its name for a moment.
        pids = {process.pid for process, _ in found}
        return [process for process, parent in found if parent not in pids]

    def kill(self, deployment: str) -> int:
        """SIGKILL a deployment's replica; its process id."""
        [replica] = self.replicas(deployment)
        os.kill(replica.pid, signal.SIGKILL)
        return replica.pid

    @contextlib.contextmanager
    def drawing_stopped(self) -> Iterator[Callable[[], None]]:
        """Stop the Generators, so that no job ends, until what is yielded is called."""
        replicas = self.replicas("Generator-cpu")

        def go_on() -> None:
            for replica in replicas:
                with contextlib.suppress(psutil.NoSuchProcess):  # a test may have killed it
                    replica.resume()

        for replica in replicas:
            replica.suspend()
        try:
            yield go_on
        finally:
            go_on()

    def media_tools(self) -> list[psutil.Process]:
        """Return the ffmpeg and ffprobe children that are running."""
        found = []
        for process in session_processes(self.ray_folder) + psutil.Process().children(True):
            with contextlib.suppress(psutil.Error):
                if process.name() in ("ffmpeg", "ffprobe"):
                    found.append(process)
        return found

    def output(self, answer: dict[str, Any], folder: Path) -> Path:
        """Fetch a job's output from where it says it is."""
        path = folder / "output.mp4"
        path.write_bytes(self.client.get(answer["output_url"]).raise_for_status().content)
        return path


@contextlib.contextmanager
def running_app(
    folder: Path,
    *,
    env: dict[str, str] | None = None,
    key: str | None = None,
    port: int | None = None,
    host: str = "127.0.0.1",
    is_json: bool = False,
    **args: Any,
) -> Iterator[RunningApp]:
    """Start the application with `args` over small defaults, and leave nothing of it. `host` is
    what it listens on.
    """
    port = port or free_port("127.0.0.1")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "serve_config.yaml"
    document = config_document(folder, port, args)
    document["http_options"]["host"] = host
    document["logging_config"]["encoding"] = "JSON" if is_json else "TEXT"
    config.write_text(yaml.safe_dump(document))
    # Ray's sockets lie below: a short path.
    ray_folder = Path(tempfile.mkdtemp(prefix="ray"))
    outer = {name: value for name, value in os.environ.items() if name not in NOT_FOR_TESTS}
    own = {
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(ray_folder),
        "TMPDIR": str(ray_folder),  # Ray's own processes leave folders there
        "WORKER_PORT": str(port),
    }
    if key is not None:
        own["INTERNAL_API_KEY"] = own["INGRESS_API_KEY"] = key
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lipsync", "serve", str(config)],
            cwd=ROOT,
            env=outer | own | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        app = RunningApp(folder, port, ray_folder, process, key)
        app.watch_start()
        yield app
        app.client.close()
    finally:
        stop(process, ray_folder)


def config_document(folder: Path, port: int, args: dict[str, Any]) -> dict[str, Any]:
    """Return the project's own configuration, moved into `folder`, with `args` on top."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    document["http_options"] = {"host": "127.0.0.1", "port": port}
    inputs = {"allowed_folders": [tempfile.gettempdir()], "allowed_hosts": ["127.0.0.1"]}
    document["applications"][0]["args"] |= {
        "engine": "warp",
        "landmarks": "mesh",
        "work_dir": str(folder / "work"),
        "result_dir": str(folder / "results"),
        "state_dir": str(folder / "state"),
        "metrics_port": 0,
        "inputs": inputs,
        # A job makes all of its avatar, also if another one had the same video.
        "avatars": {"max_gb": 0},
        **args,
    }
    return document


@contextlib.contextmanager
def media_server(folder: Path, before: Callable[[str], object] | None = None) -> Iterator[str]:
    """Serve `folder` on loopback; the base address. `before` is called with each path asked for."""
    handler = partial(_QuietHandler, before or (lambda path: None), directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    def __init__(self, before: Callable[[str], object], *args: Any, **kwargs: Any) -> None:
        self._before = before
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self._before(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def probe(path: Path) -> dict[str, Any]:
    """Return ffprobe's streams by kind, and the format."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_format"]
    text = subprocess.run(
        [*command, "-of", "json", str(path)], capture_output=True, check=True, timeout=60
    ).stdout
    found = json.loads(text)
    return {stream["codec_type"]: stream for stream in found["streams"]} | {
        "format": found["format"]
    }
