"""What the entries of the image do: they do a job, end with their status, and leave nothing."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from image_check import Wrong
from image_check.store import ROOT, Store, finished, in_session, kill_session

START_S, JOB_S, STOP_S, LEFT_S, SHORT_S = 180.0, 180.0, 60.0, 10.0, 60.0
UNFIT, RESULT = 3, 7  # exit codes: of a damaged image, and of the stand-in after a result
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """One container, and what is needed to try it."""

    store: Store
    container: str
    media: Path

    def command(self, words: Sequence[str], env: dict[str, str]) -> list[str]:
        """Return the command that does what `docker run IMAGE WORDS` does."""
        variables = [word for pair in env.items() for word in ("--env", "=".join(pair))]
        return self.store.command(
            *("run", "--isolation", "chroot", "--user", "worker", "-v", f"{self.media}:/media:ro"),
            *(*variables, self.container, "--", "tini", "-s", "--", "entrypoint", *words),
        )

    @contextmanager
    def started(
        self, words: Sequence[str], env: dict[str, str]
    ) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """Start it, with its log in a file, and leave nothing of it at the end of the block."""
        log = self.store.folder / f"{words[0]}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command(words, env), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                yield process, log
            finally:
                kill_session(process.pid)
                process.wait()


def make_media(folder: Path) -> None:
    """Write a clip with a face, a sound like speech, and the configuration."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from media import make_clip, make_speech

    folder.mkdir(parents=True, exist_ok=True)
    make_clip(folder / "face.mp4", 320, 240, 50)
    make_speech(folder / "speech.wav", 2.0)
    # Any free port for metrics: other applications may run on this machine.
    config = (ROOT / "serve_config.yaml").read_text()
    changed, count = re.subn(r"^( +)engine: ", r"\1metrics_port: 0\n\1engine: ", config, flags=re.M)
    assert count == 1
    (folder / "serve_config.yaml").write_text(changed)


def check_serve(trial: Trial) -> Facts:
    """Start the application, do a job, stop it, and see that nothing is left."""
    port = _free_port()
    env = {"WORKER_PORT": str(port), "ALLOWED_SOURCE_HOSTS": "127.0.0.1"}
    began = time.monotonic()
    with trial.started(["serve", "/media/serve_config.yaml"], env) as (process, log):
        _until_ready(port, process, log)
        ready_s = time.monotonic() - began
        with _files(trial.media) as inputs:
            job = _post(port, {"musetalk_job_id": "image-check", **inputs})
        stopped_at = time.monotonic()
        _terminate(process)
        status = _status(process, STOP_S, log)
        if status != 0:
            raise Wrong(f"`serve` ended with {status} after SIGTERM:\n{_end_of(log)}")
        _check_nothing_left(process)
    return {
        "ready_s": round(ready_s, 1),
        "job_frames": (job.get("receipt") or job["metrics"]["receipt"])["frames"],
        "stop_s": round(time.monotonic() - stopped_at, 1),
    }


def check_salad_queue(trial: Trial) -> Facts:
    """Have the stand-in post a job; its end stops the application and gives the status."""
    port = _free_port()
    began = time.monotonic()
    with _files(trial.media) as inputs:
        body = {"musetalk_job_id": "salad-queue", **inputs}
        job = {"port": port, "path": "/generate", "id": "salad-1", "input": body}
        env = {
            "WORKER_PORT": str(port), "ALLOWED_SOURCE_HOSTS": "127.0.0.1",
            "STAND_IN_JOB": json.dumps(job),
        }  # fmt: skip
        with trial.started(["salad-queue", "/media/serve_config.yaml"], env) as (process, log):
            status = _status(process, START_S + JOB_S, log)
            if status != RESULT or "queue-worker: 200" not in log.read_text():
                raise Wrong(f"`salad-queue` ended with {status}:\n{_end_of(log)}")
            _check_nothing_left(process)
    return {"salad_queue_s": round(time.monotonic() - began, 1)}


def check_run_job(trial: Trial) -> Facts:
    """Do one job in one container."""
    began = time.monotonic()
    with _files(trial.media) as inputs:
        env = {name.upper(): url for name, url in inputs.items()}
        env |= {"OUTPUT_PATH": "/app/out/result.mp4", "ALLOWED_SOURCE_HOSTS": "127.0.0.1"}
        done = finished(trial.command(["run-job"], env), JOB_S)
    if done is None or done.returncode:
        said = "did not end in time" if done is None else done.stderr[-2000:]
        raise Wrong(f"`run-job` failed: {said}")
    return {"run_job_s": round(time.monotonic() - began, 1)}


def check_verification(trial: Trial, root: Path, file: str) -> None:
    """Start a container with a damaged weight file, which has to end before the application starts.

    Raises:
        Wrong: it does not, or whole files are refused.
    """
    words = trial.command(["lipsync", "weights", "verify", "--list", "/plan/weights.json"], {})
    done = finished(words, SHORT_S)
    if done is None or done.returncode:
        raise Wrong(f"whole weights are not accepted: {done}")
    with (root / "app" / "models" / file).open("r+b") as damaged:
        damaged.write(b"damaged")
    done = finished(trial.command(["serve"], {}), SHORT_S)
    if done is None or done.returncode != UNFIT or "wrong SHA-256" not in done.stdout:
        raise Wrong(f"`serve` with a damaged weight file: {done}")


# --- parts ----------------------------------------------------------------------------------------


@contextmanager
def _files(folder: Path) -> Iterator[dict[str, str]]:
    """Serve the inputs of a job, and yield their addresses."""
    port = _free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        [*words, "--directory", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    base = f"http://127.0.0.1:{port}"
    try:
        yield {"video_url": f"{base}/face.mp4", "audio_url": f"{base}/speech.wav"}
    finally:
        server.terminate()
        server.wait()


def _post(port: int, body: dict[str, str]) -> Facts:
    with httpx.Client(trust_env=False, timeout=JOB_S) as client:
        answer = client.post(f"http://127.0.0.1:{port}/generate", json=body)
    if answer.status_code != 200:
        raise Wrong(f"the job was answered {answer.status_code}: {answer.text}")
    job: Facts = answer.json()
    return job


def _until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < until and process.poll() is None:
            with suppress(httpx.TransportError):
                if client.get(f"http://127.0.0.1:{port}/hc").status_code == 200:
                    return
            time.sleep(0.2)
    raise Wrong(f"`serve` did not become ready:\n{_end_of(log)}")


def _status(process: subprocess.Popen[bytes], within_s: float, log: Path) -> int:
    try:
        return process.wait(within_s)
    except subprocess.TimeoutExpired as exc:
        raise Wrong(f"the container did not end within {within_s:.0f} s:\n{_end_of(log)}") from exc


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to tini, as `docker stop` does; buildah does not pass signals on."""
    inner = [
        child for child in psutil.Process(process.pid).children(True) if child.name() == "tini"
    ]
    if not inner:
        raise Wrong("there is no tini in the container")
    inner[-1].terminate()


def _check_nothing_left(process: subprocess.Popen[bytes]) -> None:
    """Raise Wrong if something still runs when a container's own end would have killed it."""
    until = time.monotonic() + LEFT_S
    while (left := in_session(process.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    if left:
        raise Wrong(f"processes are left: {[each.name() for each in left]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
