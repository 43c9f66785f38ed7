"""The application as a child of the demo: a Ray session, a registry and a port of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from serve_app.config.config_file import ConfigInvalid, read_config_file

START_TIMEOUT_S = 300.0  # a cold disk and a GPU's first kernels; seconds on a warm machine
STOP_TIMEOUT_S = 40.0  # four seconds on a busy machine
KILL_TIMEOUT_S = 10.0


# The demo does its one job here: it neither works for an orchestrator nor uploads anywhere.
NOT_FOR_THE_DEMO = (
    "ORCHESTRATOR_BASE_URL",
    "BUFFER_ORCHESTRATOR_BASE_URL",
    "B2_KEY_ID",
    "B2_APP_KEY",
    "B2_BUCKET_NAME",
)


@dataclass(frozen=True, slots=True)
class Application:
    """A running application: where it answers, to which key, and where it logs."""

    base_url: str
    key: str
    log: Path
    process: subprocess.Popen[bytes]


def is_free(host: str, port: int) -> bool:
    """Say whether nobody listens on `port`."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    """Return a port that nobody listens on now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def own_config(config: Path, scratch: Path) -> tuple[Path, int]:
    """Write a copy of `config` for this run into `scratch`; return its path and port.

    What differs: the job registry is the run's own, so that it neither resumes nor leaves jobs of
    `make serve`; the port is another one where that of `config` is taken; any port for metrics.

    Raises:
        DemoFailed: there is no such file, or it is no configuration.
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
        app["args"]["metrics_port"] = 0  # `make serve` may run beside this
    copy = scratch / config.name
    copy.write_text(yaml.safe_dump(document))
    return copy, options.get("port", port)


def environment(ray_folder: Path, port: int, folders: list[Path], key: str) -> dict[str, str]:
    """Return the child's environment: a Ray session of its own, and the input folders allowed.

    Whoever reaches the port could otherwise ask for what lies in those folders: hence the key.
    """
    env = {name: value for name, value in os.environ.items() if name not in NOT_FOR_THE_DEMO}
    allowed = [*filter(None, [env.get("LIPSYNC_ALLOWED_FOLDERS")]), *map(str, folders)]
    return env | {
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(ray_folder),
        "LIPSYNC_ALLOWED_FOLDERS": ":".join(allowed),
        # All that the application writes lies below one folder, which goes with it.
        "TMPDIR": str(ray_folder),
        "MUSETALK_WORKDIR": str(ray_folder / "work"),
        "MUSETALK_RESULT_DIR": str(ray_folder / "results"),  # fetched into out/ before the end
        "INGRESS_API_KEY": key,
        "WORKER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def application(config: Path, folders: list[Path], log: Path) -> Iterator[Application]:
    """Run the application for the length of the block; only its `log` is left afterwards."""
    key = secrets.token_urlsafe(24)
    # Ray's sockets lie below this folder and a socket's path may have 107 bytes, so /tmp itself.
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
            start_new_session=True,  # Ctrl-C reaches the demo only, which then stops in order
        )
    try:
        yield Application(f"http://127.0.0.1:{port}", key, log, process)
    finally:
        stop(process, ray_folder)


def stop(process: subprocess.Popen[bytes], ray_folder: Path) -> None:
    """End the launcher politely, then whatever of its Ray session is still there.

    The session's processes are known by the folder in their environment: unlike the process tree,
    that holds after a parent has died.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    left = session_processes(ray_folder)
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
    """The demo cannot go on; the message says what to do."""


def say(text: str) -> None:
    """Print a line at once, whatever standard output is."""
    print(text, flush=True)
