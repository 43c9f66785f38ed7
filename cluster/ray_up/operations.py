"""What an operator does with a cluster file: bring the cluster up, look at it, take it down.

Ray's own launcher runs as a child of this process, because it reads its environment when it is
imported and prints all that the machines print. Its output goes to a file.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.ray_up.after_up import MARK, HeadReport
from cluster.ray_up.cluster_file import ClusterFileInvalid, check, read_cluster_file
from cluster.ray_up.cluster_settings import ProviderSettings
from cluster.ray_up.vendor_access import open_rentals
from cluster.rental.identity import Kind
from cluster.rental.values import Instance

HOME = Path("~/.lipsync")
TOKEN, APP_VARIABLES = "~/.ray/auth_token", "~/lipsync.env"
START_WAIT_S = "3600"  # an image of 20 GB takes longer than the 15 minutes that Ray waits
JOIN_S, JOIN_POLL_S = 3600.0, 5.0
UP_S, DOWN_S, ANSWER_S = 7200.0, 1800.0, 180.0
LAST_LINES = 12
STEPS = 7  # of Ray's launcher, for one machine
_STEP = re.compile(rf"\[(\d)(?:-\d)?/{STEPS}\] (.+)")
_ON_HEAD = "set -a; . ~/ray.env; set +a; cd $LIPSYNC_HOME; RAY_AUTH_MODE=token"

OnStep = Callable[[int, str], None]


class LaunchFailed(Exception):
    """Ray's launcher ended with an error. `lines` are the last that it printed."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """A cluster file without a fault."""

    path: Path
    name: str
    settings: ProviderSettings
    min_workers: int

    @property
    def log(self) -> Path:
        """Where the launcher's output goes."""
        return HOME.expanduser() / "clusters" / f"{self.name}.log"


def read(path: Path) -> ClusterFile:
    """Read and check a cluster file.

    Raises:
        ClusterFileInvalid: it has a fault.
    """
    values = read_cluster_file(path)
    if faults := check(values):
        raise ClusterFileInvalid(*(f"{path}: {fault}" for fault in faults))
    types = values["available_node_types"]
    wanted = sum(one.get("min_workers", 0) for one in types.values())
    settings = ProviderSettings.model_validate(values["provider"])
    make_secrets(values)
    return ClusterFile(path, values["cluster_name"], settings, wanted)


def make_secrets(values: dict[str, Any]) -> None:
    """Make the files with secrets that a cluster file names, where they are not there yet.

    These are the SSH key, the token of Ray's ports, and the application's variables, which begin
    with a key for its callers.
    """
    key = Path(values["auth"]["ssh_private_key"]).expanduser()
    if not key.exists():
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(command, check=True)
    mounts = values["file_mounts"]
    _write_once(mounts[TOKEN], secrets.token_hex(32))
    if APP_VARIABLES in mounts:
        _write_once(mounts[APP_VARIABLES], f"INGRESS_API_KEY={secrets.token_urlsafe(24)}\n")


def _write_once(path: str, text: str) -> None:
    file = Path(path).expanduser()
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as made:
            made.write(text)


def up(file: ClusterFile, on_step: OnStep) -> None:
    """Rent and start the head, or start it again.

    Raises:
        LaunchFailed: the head could not be rented or started.
    """
    _launch(file, on_step, UP_S, "up", "-y", "--no-config-cache", "--log-style=pretty")


def down(file: ClusterFile, on_step: OnStep) -> None:
    """Return all machines of the cluster.

    Raises:
        LaunchFailed: Ray's launcher failed, and machines may be left. `sweep` returns those.
    """
    _launch(file, on_step, DOWN_S, "down", "-y", "--log-style=pretty")


def _launch(file: ClusterFile, on_step: OnStep, deadline_s: float, *words: str) -> None:
    """Run `ray`, and report its numbered steps. It is ended after the deadline."""
    file.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ray.scripts.scripts", *words, str(file.path)]
    lines: list[str] = []
    with (
        file.log.open("w") as log,
        subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child,
    ):
        assert child.stdout is not None
        watchdog = threading.Timer(deadline_s, child.kill)
        watchdog.start()
        try:
            for line in child.stdout:
                log.write(line)
                log.flush()
                lines = [*lines[-LAST_LINES:], line.rstrip()]
                if found := _STEP.search(line):
                    on_step(int(found[1]), found[2].strip())
        finally:
            watchdog.cancel()
    if child.returncode:
        raise LaunchFailed(f"`ray {words[0]}` failed; all that it printed is in {file.log}.", lines)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "AUTOSCALER_NODE_START_WAIT_S": START_WAIT_S,
        "RAY_UP_enable_autoscaler_v2": "1",  # version 1 ignores labels
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


def report(file: ClusterFile) -> HeadReport:
    """Return what lives on the head.

    Raises:
        LaunchFailed: the head cannot be asked.
    """
    command = f"{_ON_HEAD} python -m cluster.ray_up.after_up"
    words = ["exec", "--no-config-cache", str(file.path), command]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
        )
    except subprocess.TimeoutExpired:
        raise LaunchFailed(f"The head has not answered for {ANSWER_S:.0f} s.") from None
    for line in done.stdout.splitlines():
        _, mark, text = line.partition(MARK)
        if mark:
            return HeadReport.model_validate_json(text)
    raise LaunchFailed("The head does not answer.", done.stdout.splitlines()[-LAST_LINES:])


def wait_until_joined(file: ClusterFile, on_report: Callable[[HeadReport], None]) -> HeadReport:
    """Wait until the monitor lives and as many workers have joined as the file wants at least.

    Raises:
        LaunchFailed: the monitor is dead, or the workers do not come.
    """
    until = time.monotonic() + JOIN_S
    while True:
        found = report(file)
        on_report(found)
        if found.monitor_error:
            raise LaunchFailed(
                "Ray runs on the head, but its monitor has ended, so no worker will ever come.",
                found.monitor_error.splitlines(),
            )
        if sum(node.is_alive for node in found.nodes) > file.min_workers:
            return found
        if time.monotonic() > until:
            raise LaunchFailed(
                f"Fewer than {file.min_workers} workers have joined.", found.failures
            )
        time.sleep(JOIN_POLL_S)


def machines(file: ClusterFile) -> tuple[Instance, ...]:
    """Return what the cluster has at the vendor, whether Ray knows it or not."""
    rentals = open_rentals(file.settings)
    try:
        return tuple(one for one in rentals.list(file.name) if _is_node(one))
    finally:
        rentals.close()


def sweep(file: ClusterFile) -> tuple[Instance, ...]:
    """Return the workers of a cluster whose head is gone, and tell which they were.

    Raises:
        LaunchFailed: there is a head. `down` takes the whole cluster down.
    """
    found = machines(file)
    heads = [one for one in found if one.identity and one.identity.kind is Kind.HEAD]
    if any(one.state.is_useful for one in heads):
        raise LaunchFailed(
            f"The cluster {file.name} has a head. `lipsync cluster down {file.path}` returns it "
            "and its workers."
        )
    rentals = open_rentals(file.settings)
    try:
        for machine in found:
            rentals.destroy(machine.instance_id)
    finally:
        rentals.close()
    return found


def _is_node(machine: Instance) -> bool:
    identity = machine.identity
    return identity is not None and identity.kind in (Kind.HEAD, Kind.WORKER)
