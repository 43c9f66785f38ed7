"""Runs one worker process and leaves nothing of it behind, even if the orchestrator is killed.

    python -I guard.py --log FILE --lock FILE --grace-s SECONDS --max-log-bytes N -- COMMAND…

1. The command starts in a session of its own. Its output goes to the log, of which the last one to
   two times `max-log-bytes` are kept.
2. If standard input ends, because the orchestrator closed it or died, or on SIGTERM, the command
   gets SIGTERM and may finish its jobs for `grace-s`.
3. When the command has ended, or the time is up, everything that it started is killed, including
   processes that have left its group and its session. The exit code is that of the command.

This file is run by its path and imports only the standard library. It needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
KILL_S = 10.0  # guess: a killed process is gone in milliseconds unless its disk hangs
CHUNK_BYTES = 65536
CANNOT_START = 127  # as a shell's

_libc = ctypes.CDLL(None, use_errno=True)


class Log:
    """A file of bounded size. When it is full, it becomes `NAME.1`, and a new one begins."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self.max_bytes = path, max_bytes
        self._file: BinaryIO = path.open("wb")

    def write(self, text: bytes) -> None:
        """Append output of the command, at most `max_bytes` of it."""
        if self._file.tell() + len(text) > self.max_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._path.open("wb")
        self._file.write(text)
        self._file.flush()


class Guard:
    """One command, from its start until nothing of it is left."""

    def __init__(self, command: list[str], log: Log, grace_s: float) -> None:
        self._log, self._grace_s = log, grace_s
        self._wakeup, wakeup_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_end)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # safe: this process has a single thread
        )
        assert self._child.stdout is not None
        self._output = self._child.stdout.fileno()
        os.set_blocking(self._output, False)
        self._ended = os.pidfd_open(self._child.pid)

    def run(self) -> int:
        """Wait for the command or for the orchestrator; return the exit code of the command."""
        self._until_end_or_request()
        if self._child.poll() is None:  # before `_reap`, which would take the exit code
            self._child.kill()
        code = self._child.wait()
        _kill_descendants()
        with contextlib.suppress(BlockingIOError):  # if a process that resists still has the pipe
            while self._copy_output():
                pass
        return code if code >= 0 else 128 - code

    def _until_end_or_request(self) -> None:
        poll, deadline = select.poll(), None
        for descriptor in (sys.stdin.fileno(), self._output, self._ended, self._wakeup):
            poll.register(descriptor, select.POLLIN)
        while deadline is None or time.monotonic() < deadline:
            left_ms = None if deadline is None else (deadline - time.monotonic()) * 1000
            ready = {descriptor for descriptor, _ in poll.poll(left_ms)}
            if self._output in ready and not self._copy_output():
                poll.unregister(self._output)
            if self._ended in ready:
                return
            asked = ready & {sys.stdin.fileno(), self._wakeup}
            if asked and deadline is None:
                poll.unregister(sys.stdin.fileno())
                poll.unregister(self._wakeup)
                deadline = time.monotonic() + self._grace_s
                self._child.terminate()

    def _copy_output(self) -> bool:
        """Copy what has been written; return False when no process can write any more."""
        text = os.read(self._output, min(CHUNK_BYTES, self._log.max_bytes))
        self._log.write(text)
        return bool(text)


def _die_with_parent() -> None:
    """Have the kernel kill the command if this guard is killed."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_descendants() -> None:
    """Kill and reap every process below this one. As their subreaper, it inherits all orphans."""
    deadline = time.monotonic() + KILL_S
    while time.monotonic() < deadline:
        found = list(_descendants(os.getpid()))
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(0.01)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(root: int) -> Iterator[int]:
    """Yield all processes below `root` that have not ended, each after its parent."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may contain anything; state and parent follow it.
                state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        yield from below
        waiting += below


def main() -> int:
    """Run the command of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("--max-log-bytes", type=int, required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    # Held while anything of the worker may be there, so that its folder is not removed.
    lock = given.lock.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    log = Log(given.log, given.max_log_bytes)
    try:
        guard = Guard(given.command, log, given.grace_s)
    except OSError as exc:
        log.write(f"The command cannot be started: {exc}.\n".encode())
        return CANNOT_START
    return guard.run()


if __name__ == "__main__":
    sys.exit(main())
