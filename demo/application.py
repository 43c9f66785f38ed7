"""The application as a child of the demo: a Ray session, a registry and a port of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from serve_app.config.config_file import ConfigInvalid, read_config_file
from serve_app.config.ports import free_port, is_free

START_TIMEOUT_S = 300.0  # a cold disk and a GPU's first kernels; seconds on a warm machine
STOP_TIMEOUT_S = 40.0  # four seconds on a busy machine
KILL_TIMEOUT_S = 10.0


# The demo's application neither works for an orchestrator nor uploads anything.
NOT_FOR_THE_DEMO = (
    "ORCHESTRATOR_BASE_URL",
    "BUFFER_ORCHESTRATOR_BASE_URL",
    "B2_KEY_ID",
    "B2_APP_KEY",
    "B2_BUCKET_NAME",
)


@dataclass(frozen=True, slots=True)
class Application:
    """A running application: its address, its key, its log and its process."""

    base_url: str
    key: str
    log: Path
    process: subprocess.Popen[bytes]


def own_config(config: Path, scratch: Path) -> tuple[Path, int]:
    """Write a copy of `config` for this run into `scratch`; return its path and port.

    The copy has a job registry of its own, so that it neither resumes nor leaves jobs of
    `make serve`. It has another port if that of `config` is taken, and any free port for metrics.

    Raises:
        DemoFailed: the file does not exist, or it is not a configuration.
    """
    try:
        document = read_config_file(config).values
    except ConfigInvalid as invalid:
        raise DemoFailed(str(invalid)) from None
    options = document.setdefault("http_options", {})
    host, port = options.get("host", "127.0.0.1"), options.get("port", 8000)
    if not is_free(host, port):
        options["port"] = free_port(host)
        say(f"port {port} is taken, using {options['port']}")
    for app in document.get("applications") or ():
        app.setdefault("args", {})["state_dir"] = str(scratch / "state")
        app["args"]["metrics_port"] = 0  # `make serve` may run next to this
    copy = scratch / config.name
    copy.write_text(yaml.safe_dump(document))
    return copy, options.get("port", port)


def environment(ray_folder: Path, port: int, folders: list[Path], key: str) -> dict[str, str]:
    """Return the child's environment: a Ray session of its own, and the allowed input folders.

    The key keeps others who can reach the port from reading files in those folders.
    """
    env = {name: value for name, value in os.environ.items() if name not in NOT_FOR_THE_DEMO}
    allowed = [*filter(None, [env.get("LIPSYNC_ALLOWED_FOLDERS")]), *map(str, folders)]
    return env | {
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(ray_folder),
        "LIPSYNC_ALLOWED_FOLDERS": ":".join(allowed),
        # Everything that the application writes is below one folder, which is removed with it.
        "TMPDIR": str(ray_folder),
        "MUSETALK_WORKDIR": str(ray_folder / "work"),
        "MUSETALK_RESULT_DIR": str(ray_folder / "results"),  # the demo fetches from it into out/
        "INGRESS_API_KEY": key,
        "WORKER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def application(config: Path, folders: list[Path], log: Path) -> Iterator[Application]:
    """Run the application for the length of the block. Only its `log` is left afterwards."""
    key = secrets.token_urlsafe(24)
    # Ray's sockets are below this folder, and the path of a socket has 107 bytes at most.
    ray_folder = Path(tempfile.mkdtemp(prefix="lipsync-run-", dir="/tmp"))
    config, port = own_config(config, ray_folder)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.launch", str(config)],
            cwd=ROOT,
            env=environment(ray_folder, port, folders, key),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the demo, which then stops the child
        )
    try:
        yield Application(f"http://127.0.0.1:{port}", key, log, process)
    finally:
        stop(process, ray_folder)


def stop(process: subprocess.Popen[bytes], ray_folder: Path) -> None:
    """Stop the launcher by a signal, then kill what is left of its Ray session.

    The processes of the session are recognised by the folder in their environment. Unlike the
    process tree, this still works after a parent has died.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    until = time.monotonic() + KILL_TIMEOUT_S
    # Again, because those that are killed may have started others after they were listed.
    while (left := session_processes(ray_folder)) and time.monotonic() < until:
        for one in left:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                one.kill()
        psutil.wait_procs(left, timeout=KILL_TIMEOUT_S)
    shutil.rmtree(ray_folder, ignore_errors=True)


def session_processes(ray_folder: Path) -> list[psutil.Process]:
    """Return every process that was started with `ray_folder` as its RAY_TMPDIR."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("RAY_TMPDIR") == str(ray_folder):
                found.append(process)
    return found


ROOT = Path(__file__).resolve().parent.parent


class DemoFailed(Exception):
    """The demo cannot go on. The message says what to do."""


def say(text: str) -> None:
    """Print a line at once, whatever standard output is."""
    print(text, flush=True)
