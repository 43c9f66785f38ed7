"""`make run-fleet`: an orchestrator and two workers on this machine, ten jobs, and a worker that is
killed in the middle.

1. The orchestrator is started. It rents workers from `ProcessFleet`, which starts them here.
2. Ten jobs are submitted, so it starts two workers.
3. As soon as both work, one of them is killed with SIGKILL. Its job returns to the queue, and
   another worker is started.
4. A table shows all jobs until they have ended.
5. It is verified that each job has exactly one accepted result and a video that can be decoded.
6. What was started is stopped, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import httpx
import psutil
from rich.live import Live
from rich.table import Table

from demo.application import ROOT, DemoFailed, say
from demo.media import SpeechMissing, demo_speech, demo_video
from serve_app.config.ports import free_port, is_free

OUT, CACHE = ROOT / "out" / "fleet", ROOT / ".cache" / "demo"
SPEECH_ROOTS = (Path("/"), ROOT / ".cache" / "speech")
JOBS, WORKERS, SPEECH_S = 10, 2, 2.0
RESOLUTION = "320x320"
HOST, GPU_CLASS = "127.0.0.1", "this-machine"
TIMEOUT_S, START_S, STOP_S, POLL_S = 900.0, 60.0, 90.0, 0.5
FLEET_FILE = """\
budget_usd_per_hour = 1.0
interval_s = 1.0
target_wait_s = 1.0
cooldown_up_s = 2.0
cooldown_down_s = 20.0

[[offers]]
provider = "local"
gpu_class = {gpu_class}
usd_per_hour = 0.0
startup_s = 20.0
max_workers = {workers}

[providers.local.options]
command = {command}
folder = {folder}
max_workers = {ports}
base_port = {base_port}
grace_s = 15.0

[providers.local.options.environment]
{environment}
"""


@dataclass(frozen=True, slots=True)
class Orchestrator:
    """The service of this run."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path


# What is started ------------------------------------------------------------------------------


@contextmanager
def orchestrator(out: Path, scratch: Path) -> Iterator[Orchestrator]:
    """Run the service, which starts and ends the workers, for the length of the block."""
    worker_key, admin_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    port, log = free_port(HOST), out / "orchestrator.log"
    url = f"http://{HOST}:{port}"
    file = scratch / "fleet.toml"
    file.touch(mode=0o600)
    file.write_text(fleet_file(out, scratch, url, worker_key))
    environment = {
        **{name: value for name, value in os.environ.items() if "ORCHESTRATOR" not in name},
        "DATABASE_URL": f"sqlite:///{scratch}/orchestrator.db",
        "INTERNAL_API_KEY": worker_key,
        "ORCHESTRATOR_ADMIN_KEY": admin_key,
        "ORCHESTRATOR_PORT": str(port),
        "ORCHESTRATOR_LEASE_S": "15",
        "ORCHESTRATOR_FLEET": "orchestrator.scaling.process:ProcessFleet",
        "ORCHESTRATOR_FLEET_FILE": str(file),
    }
    command = [sys.executable, "-m", "orchestrator"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=sink, start_new_session=True
        )
    headers = {"X-Internal-API-Key": admin_key}
    client = httpx.Client(base_url=url, headers=headers, timeout=20.0, trust_env=False)
    try:
        yield Orchestrator(client, process, log)
    finally:
        client.close()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()  # the guards of the workers end them in any case
        process.wait()


def fleet_file(out: Path, scratch: Path, url: str, key: str) -> str:
    """Return what may be rented: worker processes with folders, ports and Ray sessions of their
    own, which store results in `out`.
    """
    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": "{folder}",
        "TMPDIR": "{folder}",
        "MUSETALK_WORKDIR": "{folder}/work",
        "MUSETALK_RESULT_DIR": str(out),
        "ALLOWED_SOURCE_HOSTS": HOST,
        "ALLOW_LOCAL_STORE": "true",
        "ORCHESTRATOR_BASE_URL": url,
        "INTERNAL_API_KEY": key,
        "INGRESS_API_KEY": secrets.token_urlsafe(24),
        "WORKER_TYPE": "main",
        "WORKER_PORT": "{port}",
        "PROVIDER": "local",
        "GPU_CLASS_NAME": GPU_CLASS,
        "POLL_INTERVAL_SEC": "1",
    }
    config = str(ROOT / "serve_config.yaml")
    ports = WORKERS + 1  # the one that is killed may take a moment to be gone
    return FLEET_FILE.format(
        gpu_class=json.dumps(GPU_CLASS),
        workers=WORKERS,
        command=json.dumps([sys.executable, "-m", "demo.fleet_worker", config, "{port}"]),
        folder=json.dumps(str(scratch)),
        ports=ports,
        base_port=free_ports(ports),
        environment="\n".join(
            f"{name} = {json.dumps(value)}" for name, value in environment.items()
        ),
    )


def free_ports(count: int) -> int:
    """Return the first of `count` neighbouring ports that are free now."""
    while True:
        base = free_port(HOST)
        if base + count < 65536 and all(is_free(HOST, base + number) for number in range(count)):
            return base


def kill_worker(service: Orchestrator, worker_id: str) -> None:
    """Kill the process of a worker. Its guard then kills everything that it has started.

    Raises:
        DemoFailed: there is no such process.
    """
    for guard in psutil.Process(service.process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if any(f"/{worker_id}/" in word for word in guard.cmdline()):
                for child in guard.children():
                    child.send_signal(signal.SIGKILL)
                return
    raise DemoFailed(f"the process of {worker_id} was not found")


# The jobs -------------------------------------------------------------------------------------


def short_speech() -> Path:
    """Return the first seconds of the demo's speech."""
    path = CACHE / "speech-short.wav"
    with (
        wave.open(str(demo_speech(CACHE, SPEECH_ROOTS))) as whole,
        wave.open(str(path), "wb") as cut,
    ):
        cut.setparams(whole.getparams())
        cut.writeframes(whole.readframes(int(whole.getframerate() * SPEECH_S)))
    return path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keep the table on the terminal as it is."""


@contextmanager
def inputs() -> Iterator[tuple[str, str]]:
    """Serve the video and the speech to the workers. Yield their addresses."""
    try:
        video, speech = demo_video(CACHE), short_speech()
    except SpeechMissing as missing:
        raise DemoFailed(str(missing)) from missing
    handler = partial(_Quiet, directory=str(CACHE))
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://{HOST}:{server.server_port}"
        try:
            yield f"{base}/{video.name}", f"{base}/{speech.name}"
        finally:
            server.shutdown()


def submit(service: Orchestrator, video_url: str, audio_url: str) -> list[str]:
    """Submit the jobs and return their ids."""
    stamp = time.strftime("%H%M%S")
    names = [f"fleet-{stamp}-{number:02}" for number in range(1, JOBS + 1)]
    for name in names:
        body = {
            "musetalk_job_id": name,
            "video_url": video_url,
            "audio_url": audio_url,
            "resolution": RESOLUTION,
        }
        service.client.post("/v1/avatar/jobs", json=body).raise_for_status()
    return names


def watch(service: Orchestrator, names: list[str]) -> str | None:
    """Show the jobs until all have ended, and kill a worker meanwhile. Return which one it was.

    Raises:
        DemoFailed: the orchestrator ended, or it took too long.
    """
    killed, deadline = None, time.monotonic() + TIMEOUT_S
    with Live(auto_refresh=False) as live:
        while time.monotonic() < deadline:
            if service.process.poll() is not None:
                raise DemoFailed(f"the orchestrator has ended; see {service.log}")
            jobs, tries = jobs_of(service), attempts_of(service, names)
            live.update(table(jobs, tries, killed), refresh=True)
            if all(jobs[name]["state"] not in ("queued", "running") for name in names):
                return killed
            killed = killed or kill_in_the_middle(service, jobs, tries)
            time.sleep(POLL_S)
    raise DemoFailed(f"the jobs have not ended after {TIMEOUT_S:.0f} s; see {service.log}")


def kill_in_the_middle(
    service: Orchestrator, jobs: dict[str, Any], tries: dict[str, list[Any]]
) -> str | None:
    """Kill a worker if all of them run a job, and return it."""
    running = {
        str(tries[name][-1]["worker_id"])
        for name, job in jobs.items()
        if job["state"] == "running" and tries.get(name)
    }
    if len(running) < WORKERS:
        return None
    victim = min(running)
    kill_worker(service, victim)
    say(f"killed {victim} with SIGKILL while it ran a job")
    return victim


def jobs_of(service: Orchestrator) -> dict[str, Any]:
    """Return all jobs by id."""
    answer = service.client.get("/v1/avatar/jobs", params={"limit": 200})
    return {job["id"]: job for job in answer.raise_for_status().json()["jobs"]}


def attempts_of(service: Orchestrator, names: list[str]) -> dict[str, list[Any]]:
    """Return the attempts at each job."""
    found = {}
    for name in names:
        answer = service.client.get(f"/v1/avatar/jobs/{name}/attempts")
        found[name] = answer.raise_for_status().json()["attempts"]
    return found


def table(jobs: dict[str, Any], tries: dict[str, list[Any]], killed: str | None) -> Table:
    """Return the jobs as a table."""
    shown = Table(title="killed: " + killed if killed else "make run-fleet")
    for heading in ("job", "state", "phase", "attempts: worker and end"):
        shown.add_column(heading)
    for name, attempts in tries.items():
        ends = [f"{one['worker_id']} {one['end']}" for one in attempts]
        job = jobs[name]
        shown.add_row(name, job["state"], job["progress"]["phase"], ", ".join(ends))
    return shown


# What came of it ------------------------------------------------------------------------------


def verify(service: Orchestrator, names: list[str], killed: str | None, out: Path) -> None:
    """Check every job.

    Raises:
        DemoFailed: a job has no result, or more than one, or nothing was interrupted.
    """
    faults = []
    tries = attempts_of(service, names)
    for name in names:
        accepted = sum(one["end"] == "succeeded" for one in tries[name])
        if accepted != 1:
            faults.append(f"{name} has {accepted} accepted results")
        elif not frames_of(out / f"{name}.mp4"):
            faults.append(f"{name}.mp4 cannot be decoded")
    lost = [
        one
        for attempts in tries.values()
        for one in attempts
        if one["worker_id"] == killed and one["end"] == "interrupted"
    ]
    if not lost:
        faults.append("no job was interrupted by the kill")
    if faults:
        raise DemoFailed("; ".join(faults))
    say(f"{len(names)} jobs have exactly one accepted result each, and {len(lost)} ran again")
    say(f"videos: {os.path.relpath(out)}/{names[0]}.mp4 to {names[-1]}.mp4")


def frames_of(path: Path) -> int:
    """Return the number of frames of a video that can be decoded; 0 if there is none."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (OSError, av.error.FFmpegError):
        return 0


def run_fleet(out: Path) -> None:
    """Run the steps of the module's docstring."""
    out.mkdir(parents=True, exist_ok=True)
    # Ray's sockets are below this folder, and the path of a socket has 107 bytes at most.
    scratch = Path(tempfile.mkdtemp(prefix="lf-", dir="/tmp"))
    try:
        with inputs() as urls, orchestrator(out, scratch) as service:
            wait_until_it_answers(service)
            names = submit(service, *urls)
            say(f"{JOBS} jobs are queued; the orchestrator starts {WORKERS} workers")
            killed = watch(service, names)
            say("")
            verify(service, names, killed, out)
            show_decisions(service)
            say("stopping the workers and the orchestrator")
    finally:
        for log in scratch.glob("local-*/worker.log"):
            shutil.copyfile(log, out / f"{log.parent.name}.log")
        shutil.rmtree(scratch, ignore_errors=True)


def show_decisions(service: Orchestrator) -> None:
    """Print what the orchestrator decided about workers, the first decision first."""
    answer = service.client.get("/v1/scaling").raise_for_status().json()
    for decision in reversed(answer["decisions"]):
        say(f"workers {decision['have']} -> {decision['want']}: {decision['reason']}")


def wait_until_it_answers(service: Orchestrator) -> None:
    """Wait for `GET /health`.

    Raises:
        DemoFailed: it never answered.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and service.process.poll() is None:
        with suppress(httpx.TransportError):
            if service.client.get("/health").status_code == 200:
                return
        time.sleep(POLL_S / 5)
    raise DemoFailed(f"the orchestrator did not start:\n{service.log.read_text()[-2000:]}")


def main() -> int:
    """Run the demo; return 0, or 1 after one sentence on standard error."""
    parser = argparse.ArgumentParser(description="An orchestrator with two workers, ten jobs.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the videos")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run_fleet(parser.parse_args().out.resolve())
    except (DemoFailed, httpx.HTTPError) as failed:
        print(f"\nmake run-fleet: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake run-fleet: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
