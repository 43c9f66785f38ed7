"""buildah's storage in a folder of this project, and the build of Dockerfile.gpu in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from image_check import Unable, Wrong

ROOT = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
ALL_S, COMMAND_S = 900.0, 300.0
# What apt, pip and curl say if a server cannot be reached, which is no fault of the image.
UNREACHABLE = re.compile(
    r"Temporary failure resolving|Could not (?:resolve|connect)|Failed to fetch|Network is unreach"
    r"|Connection timed out|NewConnectionError|ReadTimeoutError|ConnectTimeoutError|HTTP error 50\d"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer, and the instruction that made it."""

    digest: str
    bytes: int
    made_by: str


class Store:
    """Images and containers. All commands together end within `ALL_S`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.driver = "overlay" if _can_overlay(folder) else "vfs"
        self._until = time.monotonic() + ALL_S
        self._program = [
            "buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run"),
            "--storage-driver", self.driver,
        ]  # fmt: skip
        self._policy = folder / "policy.json"
        self._policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    @property
    def has_layers(self) -> bool:
        """Whether a layer takes only its own bytes. With vfs each one is a copy of everything."""
        return self.driver == "overlay"

    def run(self, *words: str, timeout_s: float = COMMAND_S) -> str:
        """Run one command of buildah and return what it prints.

        Raises:
            Wrong: it failed.
            Unable: it failed because a server could not be reached, or there was no time left.
        """
        done = finished([*self._program, *words], min(timeout_s, self.left_s()))
        if done is None:
            raise Unable(f"buildah {words[0]} did not end in time on this machine")
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
            kind = Unable if UNREACHABLE.search(last) else Wrong
            raise kind(f"buildah {words[0]} failed:\n{last}")
        return done.stdout.strip()

    def left_s(self) -> float:
        """Return how much time there is for all that follows."""
        return max(1.0, self._until - time.monotonic())

    def command(self, *words: str) -> list[str]:
        """Return the words of a command, to be started by the caller."""
        return [*self._program, *words]

    @contextmanager
    def container(self, image: str) -> Iterator[str]:
        """Make a container of the image, and remove it."""
        made = self.run("from", "--pull-never", image)
        try:
            yield made
        finally:
            self.run("rm", made)

    def make_base(self, name: str) -> None:
        """Make a Debian root with Python, once, and see that a command runs in it.

        Raises:
            Unable: this machine cannot do that.
        """
        if self.run("images", "--quiet", "--filter", f"reference={name}"):
            return  # kept by an earlier call, and with it the layers on it
        root = self.folder / "root"
        if not (root / "usr" / "bin" / "python3").exists():
            shutil.rmtree(root, ignore_errors=True)
            include = "--include=ca-certificates,python3,python3-venv"
            # In a namespace of mounts, as a debootstrap that is stopped leaves /proc in the root.
            words = ["unshare", "--mount", "debootstrap", "--variant=minbase", include, SUITE]
            done = finished([*words, str(root), *_mirror()], COMMAND_S)
            if done is None or done.returncode:
                last = "" if done is None else done.stdout[-300:] + done.stderr[-300:]
                shutil.rmtree(root, ignore_errors=True)
                raise Unable(f"debootstrap made no Debian {SUITE} here: {last}")
        try:
            made = self.run("from", "scratch")
            self.run("add", made, str(root), "/")
            self.run("run", "--isolation", "chroot", made, "--", "/bin/true")
            self.run("commit", "--signature-policy", str(self._policy), "--rm", made, name)
        except Wrong as wrong:
            raise Unable(f"no container runs here: {wrong}") from wrong

    def build(
        self, name: str, context: Path, arguments: Mapping[str, str], secret: Path | None = None
    ) -> None:
        """Build the worker from the Dockerfile.gpu of `context`; a layer that is there is kept."""
        secrets = () if secret is None else ("--secret", f"id=hub_token,src={secret}")
        self.run(
            *("bud", "--pull-never", "--isolation", "chroot", "--format", "docker"),
            *("--signature-policy", str(self._policy), "--target", "worker", "-t", name),
            *(("--layers",) if self.has_layers else ()),
            *(word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))),
            *(word for mount in self._lent() for word in ("-v", mount)),
            *secrets,
            *("-f", str(context / "Dockerfile.gpu"), str(context)),
            timeout_s=ALL_S,
        )

    def description(self, name: str) -> dict[str, Any]:
        """Return all that is recorded of an image: layers, environment, history."""
        found: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", name))
        return found

    def layers(self, name: str) -> list[Layer]:
        """Return the layers of an image, from the lowest on."""
        listed = self.folder / "store" / f"{self.driver}-layers" / "layers.json"
        held = {
            layer["diff-digest"]: int(layer.get("diff-size", 0))
            for layer in json.loads(listed.read_text())
            if "diff-digest" in layer
        }
        image = self.description(name)["OCIv1"]
        makers = [each for each in image["history"] if not each.get("empty_layer")]
        return [
            Layer(digest, held[digest], maker.get("created_by", ""))
            for digest, maker in zip(image["rootfs"]["diff_ids"], makers, strict=True)
        ]

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
            top = Path(*path.parts[:3])  # an index may refer to a folder next to it
            lent.add(path if path.parts[1] in ("etc", "usr", "var") else top)
        for path in sorted(lent):
            if path.exists():
                yield f"{path}:{path}:ro"


def copy_context(target: Path) -> None:
    """Copy what the build reads, so that the check may change a file of it."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    sent = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for name in ("Dockerfile.gpu", ".dockerignore", *sent):
        for source in ROOT.glob(name):
            if source.is_dir():
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, target / source.name, ignore=unwanted)
            else:
                shutil.copy2(source, target / source.name)


# --- processes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def finished(words: Sequence[str], timeout_s: float) -> Finished | None:
    """Run a command; None if it did not end in time. Nothing that it started is left then."""
    process = subprocess.Popen(
        words, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_session(process.pid)
        process.communicate()
        return None
    return Finished(process.returncode, stdout, stderr)


def kill_session(session: int) -> None:
    """End the processes of a session. Those of a container have groups of their own, but one
    session.
    """
    for process in in_session(session):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def in_session(session: int) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def remove(folder: Path) -> None:
    """Remove a folder of the check, and first what is mounted below it."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed([each for each in mounted if each.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", place], check=False)
    if any(each.startswith(f"{folder}/") for each in Path("/proc/self/mounts").read_text().split()):
        return  # the files of something else would be removed
    shutil.rmtree(folder, ignore_errors=True)


# --- this machine ---------------------------------------------------------------------------------


def _mirror() -> Sequence[str]:
    """Return the address that this machine gets Debian's packages from, if it is Debian."""
    for path in [*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")]:
        text = path.read_text() if path.is_file() else ""
        if found := re.search(r"(?:URIs: |^deb )(https?://\S+/debian)\b", text, re.M):
            return [found[1]]
    return []


def _can_overlay(folder: Path) -> bool:
    """Return whether this kernel lays one folder over another, on the disk of `folder`."""
    trial = folder / "trial"
    for name in ("lower", "upper", "work", "merged"):
        (trial / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
    words = ["mount", "-t", "overlay", "overlay", "-o", options, str(trial / "merged")]
    mounted = finished(words, 10.0)
    is_able = mounted is not None and mounted.returncode == 0
    if is_able:
        subprocess.run(["umount", trial / "merged"], check=True)
    shutil.rmtree(trial)
    return is_able
