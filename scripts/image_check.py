"""Build the worker's image without a daemon, and show that it works: `make image-check`.

    .venv/bin/python scripts/image_check.py [--keep] [--write]

It needs root, buildah and debootstrap. The base image is a Debian root that debootstrap makes, and
torch is its build for CPUs, so no registry is asked; every RUN of Dockerfile.gpu is executed.

1. The image is built, in a folder of its own below .cache/image.
2. Its bytes are counted, by part, and compared with cluster/image/sizes.json: 5 % more is a fault.
   `--write` writes that file instead.
3. Its files, its environment and its history are searched for secrets. One that was planted has to
   be found.
4. `serve` answers /hc, does a job, and stops on SIGTERM, and no process is left. `run-job` ends
   with 0.

The last line is one JSON object. Exit code 1: something is not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "image"
SIZES = ROOT / "cluster" / "image" / "sizes.json"
SUITE = "bookworm"
MAX_GROWTH = 0.05
MB = 10**6
BUILD_S, START_S, JOB_S, STOP_S, LEFT_S = 1200.0, 180.0, 180.0, 60.0, 10.0
PARTS = {  # what the table names; all else is "other"
    "torch": "app/.venv/lib/*/site-packages/torch",
    "nvidia": "app/.venv/lib/*/site-packages/nvidia",
    "ray": "app/.venv/lib/*/site-packages/ray",
    "other packages": "app/.venv",
    "weights": "app/models",
    "our code": "app",
    "system": "usr",
}
# Tokens of the services that a build or a worker may hold, and private keys.
SECRETS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}|K00[0-9][A-Za-z0-9/+]{27}"
    rb"|-----BEGIN (?:RSA |EC |OPENSSH )?PRIVATE KEY-----|dckr_pat_[A-Za-z0-9_-]{20,}"
)
PLANTED = b"hf_" + b"PlantedByTheImageCheckToBeFound0"
Facts = dict[str, Any]


class Wrong(Exception):
    """The image is not as it should be; the message is a sentence."""


class Store:
    """buildah's storage, in a folder of this project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._program = [
            "buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run"),
            "--storage-driver", "vfs",
        ]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self._policy = folder / "policy.json"
        self._policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def run(self, *words: str, timeout_s: float = 300.0) -> str:
        """Run one command of buildah and return what it prints."""
        answer = subprocess.run(
            [*self._program, *words], cwd=ROOT, text=True, capture_output=True, timeout=timeout_s
        )
        if answer.returncode:
            last = "\n".join((answer.stdout + answer.stderr).splitlines()[-30:])
            raise Wrong(f"buildah {words[0]} failed:\n{last}")
        return answer.stdout.strip()

    def command(self, *words: str) -> list[str]:
        """Return the words of a command, to be started by the caller."""
        return [*self._program, *words]

    def make_base(self, name: str) -> None:
        """Make a Debian root with Python, once."""
        root = self.folder / "root"
        if not (root / "usr" / "bin" / "python3").exists():
            shutil.rmtree(root, ignore_errors=True)
            include = "--include=ca-certificates,python3,python3-venv"
            words = ["debootstrap", "--variant=minbase", include, SUITE, str(root), *_mirror()]
            with (self.folder / "debootstrap.log").open("wb") as log:
                subprocess.run(words, check=True, stdout=log, stderr=log, timeout=600)
        container = self.run("from", "scratch")
        self.run("add", container, str(root), "/")
        self.run("commit", "--signature-policy", str(self._policy), "--rm", container, name)

    def build(self, name: str, base: str) -> None:
        """Build the worker from Dockerfile.gpu, with torch for CPUs."""
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        arguments = {"BASE_IMAGE": base, "TORCH_BUILD": "cpu", "BUILD_COMMIT": commit}
        arguments |= {"SERVE_CONFIG": "serve_config.yaml"}
        self.run(
            *("bud", "--pull-never", "--isolation", "chroot", "--format", "docker"),
            *("--signature-policy", str(self._policy), "--target", "worker", "-t", name),
            *(word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))),
            *(word for mount in self._lent() for word in ("-v", mount)),
            *("-f", "Dockerfile.gpu", "."),
            timeout_s=BUILD_S,
        )

    def _lent(self) -> Iterator[str]:
        """Yield what this machine lends to the build: certificates, and where packages are."""
        settings = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
        ).stdout
        found = dict(
            (name.partition(".")[2], value.strip("'"))
            for name, _, value in (line.partition("=") for line in settings.splitlines())
        )
        certificates = found.get("cert")
        if certificates:  # elsewhere than in /etc/ssl, which the build itself fills
            found["cert"] = "/lent/certificates.crt"
            yield f"{certificates}:{found['cert']}:ro"
        config = self.folder / "pip.conf"
        lines = (f"{name} = {value}\n" for name, value in found.items())
        config.write_text("[global]\n" + "".join(lines))
        yield f"{config}:/etc/pip.conf:ro"
        words = " ".join(found.values()).replace("file://", "").split()
        lent = set()
        for path in (Path(word) for word in words if word.startswith("/")):
            top = Path(*path.parts[:2])
            lent.add(path if str(top) in ("/etc", "/usr", "/var") else top)
        for path in sorted(lent):
            if path.exists():
                yield f"{path}:{path}:ro"


def _mirror() -> Sequence[str]:
    """Return the address that this machine gets Debian's packages from, if it is Debian."""
    for path in [*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")]:
        found = re.search(r"(?:URIs: |^deb )(https?://\S+/debian)\b", path.read_text(), re.M)
        if found:
            return [found[1]]
    return []


# --- what is in it --------------------------------------------------------------------------------


def sizes(root: Path) -> dict[str, int]:
    """Return MB by part. A file counts for the first part of PARTS that holds it."""
    counted: set[Path] = set()
    found = {}
    for part, pattern in PARTS.items():
        total = 0
        for top in root.glob(pattern):
            for path in top.rglob("*"):
                if path not in counted and path.is_file() and not path.is_symlink():
                    counted.add(path)
                    total += path.stat().st_size
        found[part] = round(total / MB)
    everything = sum(
        path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()
    )
    found["all"] = round(everything / MB)
    return found


def check_growth(now: dict[str, int], before: dict[str, int]) -> None:
    """Raise Wrong if the image is more than 5 % larger than it was."""
    if now["all"] > before["all"] * (1 + MAX_GROWTH):
        grown = {part: now[part] - before.get(part, 0) for part in now}
        raise Wrong(
            f"the image has grown from {before['all']} to {now['all']} MB {grown}: take out what "
            "is not needed, or accept it with `scripts/image_check.py --write`"
        )


def secrets_in(root: Path, description: bytes) -> list[str]:
    """Return where something looks like a secret: our own files, home folders, the description."""
    found = ["its environment or history"] if SECRETS.search(description) else []
    for top in ("app", "home", "root", "run", "tmp", "etc", "usr/local"):
        for path in (root / top).rglob("*"):
            if ".venv" in path.parts or path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size < 10 * MB and SECRETS.search(path.read_bytes()):
                found.append(str(path.relative_to(root)))
    return found


def check_secrets(store: Store, name: str, root: Path) -> None:
    """Raise Wrong if there is a secret in the image, or if one that is planted is not found."""
    description = store.run("inspect", "--type", "image", name).encode()
    found = secrets_in(root, description)
    if found:
        raise Wrong(f"something that looks like a secret is in {', '.join(found)}")
    planted = root / "app" / "planted"
    planted.write_bytes(b"token = " + PLANTED)
    try:
        if secrets_in(root, description) != ["app/planted"]:
            raise Wrong("a planted secret was not found")
        if not secrets_in(root, description + PLANTED)[:1] == ["its environment or history"]:
            raise Wrong("a planted secret in the history was not found")
    finally:
        planted.unlink()


# --- what it does ---------------------------------------------------------------------------------


def make_media(folder: Path) -> None:
    """Write a clip with a face, and a sound like speech."""
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


@contextlib.contextmanager
def container(store: Store, name: str) -> Iterator[str]:
    """Make a container of the image, and remove it."""
    made = store.run("from", "--pull-never", name)
    try:
        yield made
    finally:
        store.run("rm", made)


def in_container(
    store: Store, made: str, media: Path, words: Sequence[str], env: dict[str, str]
) -> list[str]:
    """Return the command that does in a container what `docker run IMAGE WORDS` does."""
    variables = [word for pair in env.items() for word in ("--env", "=".join(pair))]
    return store.command(
        *("run", "--isolation", "chroot", "--user", "worker", "-v", f"{media}:/media:ro"),
        *(*variables, made, "--", "tini", "-s", "--", "entrypoint", *words),
    )


def check_serve(store: Store, made: str, media: Path) -> Facts:
    """Start the application, do a job, stop it, and see that nothing is left."""
    port = _free_port()
    env = {"WORKER_PORT": str(port), "ALLOWED_SOURCE_HOSTS": "127.0.0.1"}
    began = time.monotonic()
    log = (store.folder / "serve.log").open("wb")
    process = subprocess.Popen(
        in_container(store, made, media, ["serve", "/media/serve_config.yaml"], env),
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        _until_ready(port, process, store.folder / "serve.log")
        ready_s = time.monotonic() - began
        with _files(media) as files:
            inputs = {f"{kind}_url": f"{files}/{file}" for kind, file in _INPUTS.items()}
            job = _post(port, {"musetalk_job_id": "image-check", **inputs})
        stopped_at = time.monotonic()
        _terminate(process)
        status = process.wait(STOP_S)
        if status != 0:
            raise Wrong(f"`serve` ended with {status} after SIGTERM")
        if left := _left_of(process.pid):
            raise Wrong(f"processes are left: {left}")
        return {
            "ready_s": round(ready_s, 1),
            "job_frames": (job.get("receipt") or job["metrics"]["receipt"])["frames"],
            "stop_s": round(time.monotonic() - stopped_at, 1),
        }
    finally:
        _kill_session(process.pid)
        process.wait()
        log.close()


_INPUTS = {"video": "face.mp4", "audio": "speech.wav"}


def check_run_job(store: Store, made: str, media: Path) -> Facts:
    """Do one job in one container."""
    with _files(media) as files:
        env = {
            "VIDEO_URL": f"{files}/face.mp4", "AUDIO_URL": f"{files}/speech.wav",
            "OUTPUT_PATH": "/app/out/result.mp4", "ALLOWED_SOURCE_HOSTS": "127.0.0.1",
        }  # fmt: skip
        began = time.monotonic()
        answer = subprocess.run(
            in_container(store, made, media, ["run-job"], env),
            capture_output=True, text=True, timeout=JOB_S,
        )  # fmt: skip
    if answer.returncode:
        raise Wrong(f"`run-job` ended with {answer.returncode}: {answer.stderr[-2000:]}")
    return {"run_job_s": round(time.monotonic() - began, 1)}


@contextlib.contextmanager
def _files(folder: Path) -> Iterator[str]:
    port = _free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        [*words, "--directory", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _post(port: int, body: dict[str, str]) -> Facts:
    import httpx

    with httpx.Client(trust_env=False, timeout=JOB_S) as client:
        answer = client.post(f"http://127.0.0.1:{port}/generate", json=body)
    if answer.status_code != 200:
        raise Wrong(f"the job was answered {answer.status_code}: {answer.text}")
    job: Facts = answer.json()
    return job


def _until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    until = time.monotonic() + START_S
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"http://127.0.0.1:{port}/hc").status_code == 200:
                    return
            time.sleep(0.2)
    raise Wrong(f"`serve` did not become ready:\n{log.read_text()[-3000:]}")


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to tini, as `docker stop` does; buildah does not pass signals on."""
    inner = [
        child for child in psutil.Process(process.pid).children(True) if child.name() == "tini"
    ]
    if not inner:
        raise Wrong("there is no tini in the container")
    inner[-1].terminate()


def _left_of(session: int) -> list[str]:
    """Return what still runs when a container's own end would have killed it."""
    until = time.monotonic() + LEFT_S
    while (left := _processes_of(session)) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def _kill_session(session: int) -> None:
    """End a container's processes. They have groups of their own, but one session."""
    for process in _in_session(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _processes_of(session: int) -> list[str]:
    return [process.name() for process in _in_session(session)]


def _in_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --------------------------------------------------------------------------------------------------


def check(store: Store, *, write: bool) -> Facts:
    """Do everything, and return what was measured."""
    base, name = "localhost/lipsync-base:check", "localhost/lipsync-worker:check"
    began = time.monotonic()
    store.make_base(base)
    store.build(name, base)
    facts: Facts = {"build_s": round(time.monotonic() - began)}
    media = store.folder / "media"
    make_media(media)
    with container(store, name) as made:
        root = Path(store.run("mount", made))
        facts["mb"] = sizes(root)
        if write or not SIZES.exists():
            SIZES.write_text(json.dumps(facts["mb"], indent=2) + "\n")
        check_growth(facts["mb"], json.loads(SIZES.read_text()))
        check_secrets(store, name, root)
        facts |= check_serve(store, made, media)
        facts |= check_run_job(store, made, media)
    return facts


def why_not() -> str | None:
    """Return what this machine lacks for the check."""
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "it needs root"
    return f"install {' and '.join(missing)}" if missing else None


def main() -> int:
    """Run the check and print its figures."""
    parser = argparse.ArgumentParser(description="Build the worker's image, and try it.")
    parser.add_argument("--write", action="store_true", help="accept the sizes as they are")
    parser.add_argument("--keep", action="store_true", help="keep the image for the next call")
    options = parser.parse_args()
    lacking = why_not()
    if lacking:
        print(f"image-check: skipped: {lacking}", file=sys.stderr)
        return 0
    store = Store(FOLDER)
    try:
        facts = check(store, write=options.write)
    except (Wrong, subprocess.SubprocessError) as wrong:
        print(f"image-check: {wrong}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            shutil.rmtree(FOLDER, ignore_errors=True)
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
