"""Ends a worker whose head is gone, so that it does not cost money for ever.

    python -m cluster.ray_up.head_watch --vendor runpod --head "$RAY_HEAD_IP:6379" --minutes 15

The last of `worker_start_ray_commands` runs this. The watch goes on in the background. A head that
takes the worker over runs the same command again, and the watch then follows that head.

1. Once in some seconds the head's port is connected to.
2. When no connection has succeeded for so many minutes, the machine is given back at its vendor,
   with the key that the vendor puts into each machine for this purpose (RunPod, Vast).
3. Where there is no such key, or the vendor does not answer, the first process of the machine is
   ended. The container then exits; a virtual machine is switched off.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.ray_up.vendor_access import destroy_own_machine
from cluster.rental.errors import RentalError
from cluster.rental.values import Vendor

logger = logging.getLogger("lipsync.head_watch")

CHECK_S = 10.0
CONNECT_S = 5.0
STATE = Path("~/.lipsync/head_watch.json")
LOG = Path("~/.lipsync/head_watch.log")
# The variables with the machine's own id and key, as the vendors set them in each machine.
OWN_KEYS = {
    Vendor.RUNPOD: ("RUNPOD_POD_ID", "RUNPOD_API_KEY"),
    Vendor.VAST: ("CONTAINER_ID", "CONTAINER_API_KEY"),
}


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched: the head's host and port, and how long it may be away, in seconds."""

    host: str
    port: int
    patience_s: float

    @classmethod
    def read(cls, path: Path) -> Watched:
        """Return what a file says."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write this into a file, in one step."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({key: getattr(self, key) for key in self.__slots__}))
        fresh.replace(path)


def is_reachable(watched: Watched) -> bool:
    """Return whether something accepts connections at the head's port."""
    try:
        socket.create_connection((watched.host, watched.port), CONNECT_S).close()
    except OSError:
        return False
    return True


def watch(
    read: Callable[[], Watched],
    is_there: Callable[[Watched], bool] = is_reachable,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Watched:
    """Return when the head has been away for too long. `read` is called for each check."""
    watched = read()
    seen_at = clock()
    while True:
        current = read()
        if current != watched:  # another head has taken this machine over
            watched, seen_at = current, clock()
        if is_there(watched):
            seen_at = clock()
        elif clock() - seen_at >= watched.patience_s:
            return watched
        pause(min(CHECK_S, watched.patience_s / 4))


def main(arguments: list[str] | None = None) -> int:
    """Note what is to be watched, and start the watch unless it runs already."""
    given = _parser().parse_args(arguments)
    if given.run:
        return run(Vendor(given.vendor))
    host, _, port = given.head.rpartition(":")
    Watched(host, int(port), given.minutes * 60).write(STATE.expanduser())
    with LOG.expanduser().open("wb") as log:
        subprocess.Popen(
            [sys.executable, "-m", "cluster.ray_up.head_watch", "--run", "--vendor", given.vendor],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives the SSH connection that starts it
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="head_watch", description=__doc__)
    parser.add_argument("--vendor", choices=[vendor.value for vendor in Vendor], required=True)
    parser.add_argument("--head", metavar="HOST:PORT", default="127.0.0.1:6379")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    return parser


def run(vendor: Vendor) -> int:
    """Watch, and end this machine. Return at once if another process watches already."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    lock = (STATE.expanduser().with_suffix(".lock")).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    lost = watch(lambda: Watched.read(STATE.expanduser()))
    logger.warning(
        "the head at %s:%d has not answered for %.0f s: this machine ends itself",
        lost.host,
        lost.port,
        lost.patience_s,
    )
    end_machine(vendor, environment_of_first_process() | os.environ)
    return 0


def environment_of_first_process() -> dict[str, str]:
    """Return the variables of process 1, which a login over SSH does not get."""
    pairs = Path("/proc/1/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def end_machine(vendor: Vendor, environ: Mapping[str, str]) -> None:
    """Give this machine back at its vendor, or else end its first process."""
    names = OWN_KEYS.get(vendor)
    if names is not None and all(environ.get(name) for name in names):
        machine_id, key = (environ[name] for name in names)
        try:
            destroy_own_machine(vendor, machine_id, key, environ)
        except RentalError as exc:
            logger.error("the vendor did not take the machine back: %s", exc)
        else:
            return
    _end_first_process()


def _end_first_process() -> None:
    if Path("/proc/1/comm").read_text().strip() == "systemd":
        subprocess.run(["nsenter", "--target", "1", "--mount", "systemctl", "poweroff"], check=True)
    else:
        os.kill(1, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
