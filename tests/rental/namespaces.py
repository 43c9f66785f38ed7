"""Machines that are network namespaces with an sshd, on a closed segment of this computer.

The bridge is in the operator's namespace, so the computer itself gets neither an interface nor a
route: nothing leaves the segment. A machine has its own processes, mounts, host name and memory
segments as well, because `ray stop` ends every Ray process that it sees. Its files are the
computer's, with /tmp, /root, /run and /dev/shm of its own. Ending it is one SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]
INIT = Path(__file__).with_name("machine_init.sh")
TOOLS = ("ip", "nsenter", "unshare", "rsync", "ssh", "ssh-keygen")
SSHD = "/usr/sbin/sshd"
OPERATOR_PRIVATE, OPERATOR = "10.77.0.1", "10.78.0.1"
STEP_S = 30.0  # for one command that changes a namespace
CLONE_NEWNET = 0x40000000

T = TypeVar("T")


def why_not() -> str | None:
    """Return why there can be no such machines here, or None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not Path(SSHD).exists():
        missing.append("sshd")
    if missing:
        return f"not installed: {', '.join(missing)}"
    name = f"ls{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    tried = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "true"], capture_output=True
    )
    return "process namespaces are not permitted" if tried.returncode else None


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a machine: its namespace and its addresses."""

    namespace: str
    private_ip: str
    public_ip: str
    public_port: int


@dataclass(slots=True)
class Segment:
    """The segment: the operator's namespace, and a slot for each machine."""

    operator: str
    slots: list[Slot]
    public_key: str
    folder: Path
    running: dict[Slot, subprocess.Popen[bytes]] = field(default_factory=dict)

    def boot(self, slot: Slot, name: str, environment: Mapping[str, str]) -> None:
        """Start a machine; its first process has these variables."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[slot] = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{slot.namespace}", "unshare", "--pid", "--fork",
                 "--kill-child=SIGKILL", "--mount", "--uts", "--ipc", "bash", str(INIT)],
                env={
                    "PATH": os.environ["PATH"],
                    "MACHINE": name,
                    "PRIVATE_IP": slot.private_ip,
                    "PUBLIC_IP": slot.public_ip,
                    "PUBLIC_PORT": str(slot.public_port),
                    "KEEP": ":".join(kept_folders()),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def end(self, slot: Slot) -> None:
        """End a machine with all of its processes, at once."""
        process = self.running.pop(slot)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STEP_S)

    def command(self, *words: str) -> list[str]:
        """Return a command that runs another one as the operator, with a /tmp of its own."""
        enter = ["nsenter", f"--net=/run/netns/{self.operator}", "unshare", "--mount"]
        private = 'mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm && exec "$@"'
        return [*enter, "bash", "-c", private, "operator", *words]

    def listen(self, port: int = 0) -> socket.socket:
        """Return a socket that listens at the operator's public address."""

        def make() -> socket.socket:
            made = socket.create_server((OPERATOR, port))
            made.set_inheritable(False)
            return made

        return self.inside(make)

    def inside(self, call: Callable[[], T]) -> T:
        """Call something in a thread that is in the operator's namespace."""
        with ThreadPoolExecutor(1, initializer=self._enter) as one:
            return one.submit(call).result()

    def _enter(self) -> None:
        with open(f"/run/netns/{self.operator}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def kept_folders() -> list[str]:
    """Return the folders that machines need although they may be below a private one."""
    venv = Path(sys.prefix)
    found = [ROOT, venv, venv.resolve(), Path(sys.base_prefix), Path(sys.executable).resolve()]
    folders = {str(path if path.is_dir() else path.parent.parent) for path in found}
    return sorted(folders)


@contextlib.contextmanager
def segment(folder: Path, machines: int) -> Iterator[Segment]:
    """Make a segment with slots for so many machines, and leave nothing of it."""
    mark = f"ls{os.getpid()}"
    key = folder / "id_ed25519"
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    slots = [
        Slot(f"{mark}-{n}", f"10.77.0.{10 + n}", f"10.78.0.{10 + n}", 2200 + n)
        for n in range(1, machines + 1)
    ]
    made = Segment(f"{mark}-op", slots, key.with_suffix(".pub").read_text().strip(), folder)
    try:
        _make_operator(made.operator)
        for number, slot in enumerate(slots):
            _make_slot(made.operator, slot, f"p{number}")
        yield made
    finally:
        for slot in list(made.running):
            made.end(slot)
        for namespace in (made.operator, *(slot.namespace for slot in slots)):
            _remove(namespace)


def _make_operator(name: str) -> None:
    _run("ip", "netns", "add", name)
    _ip(name, "link", "set", "lo", "up")
    _ip(name, "link", "add", "br0", "type", "bridge")
    for address in (OPERATOR_PRIVATE, OPERATOR):
        _ip(name, "addr", "add", f"{address}/24", "dev", "br0")
    _ip(name, "link", "set", "br0", "up")


def _make_slot(operator: str, slot: Slot, port: str) -> None:
    name = slot.namespace
    _run("ip", "netns", "add", name)
    _ip(name, "link", "set", "lo", "up")
    _run("ip", "link", "add", "veth0", "netns", name, "type", "veth",
         "peer", "name", port, "netns", operator)  # fmt: skip
    _ip(operator, "link", "set", port, "master", "br0", "up")
    for address in (slot.private_ip, slot.public_ip):
        _ip(name, "addr", "add", f"{address}/24", "dev", "veth0")
    _ip(name, "link", "set", "veth0", "up")


def _remove(namespace: str) -> None:
    """Remove a namespace, with the processes that are left in it (SSH's shared connections)."""
    if not Path(f"/run/netns/{namespace}").exists():
        return
    left = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    for pid in left.stdout.split():
        if int(pid) != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", namespace], timeout=STEP_S, check=False)


def _ip(namespace: str, *words: str) -> None:
    _run("ip", "-n", namespace, *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=STEP_S)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
