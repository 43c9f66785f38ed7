"""A worker process for the tests of the process fleet. It tells a hub what happens to it.

    python fleet_worker.py HUB_PORT [ignore] [spawn] [fail]

It connects to the hub and sends one line of JSON. The hub sees from the end of the connection that
the process has ended, however it ended. `ignore` ignores SIGTERM, `spawn` starts a second process
that leaves the session and ignores SIGTERM too, `fail` ends at once with exit code 3.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run until a signal ends it."""
    port, *words = sys.argv[1:]
    hub = socket.create_connection(("127.0.0.1", int(port)))
    if "ignore" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: leave(hub))
    if "spawn" in words:
        subprocess.Popen([sys.executable, __file__, port, "ignore"], start_new_session=True)
    facts = {"pid": os.getpid(), "folder": str(Path.cwd()), "environment": dict(os.environ)}
    hub.sendall(json.dumps(facts).encode() + b"\n")
    if "fail" in words:
        sys.exit(3)
    while True:
        signal.pause()


def leave(hub: socket.socket) -> None:
    """Tell the hub that the worker ends gracefully, and end."""
    hub.sendall(b'"drained"\n')
    sys.exit(0)


if __name__ == "__main__":
    main()
