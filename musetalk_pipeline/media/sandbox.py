"""Every ffmpeg and ffprobe child. Hostile media is parsed nowhere else.

A child
1. gets its own session, so that the whole group can be killed, and an empty environment (no
   secrets);
2. gets the limits of `prlimit` (memory, CPU seconds, file size, open files, no core) and
   `--no-new-privs` and a parent-death signal from `setpriv`, both of util-linux;
3. reads local files and pipes only, with one named demuxer and no standard input;
4. may open nothing but its own input and output and the programs, and no socket, if the kernel
   can enforce that (`confinement`);
5. is killed with its group, and waited for, when its deadline passes, its reader goes away or
   anything is raised.

What it prints on standard error is kept up to `STDERR_BYTES`, and paths of this host are removed
before it is shown.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path
from types import TracebackType
from typing import Self

from musetalk_pipeline.errors import DeadlineExceeded, StageFailed
from musetalk_pipeline.media.confinement import confine_this_thread

STDERR_BYTES = 4096
PIPE_BYTES = 1 << 20  # Linux's default ceiling for an unprivileged pipe; fewer, larger switches
MEMORY_BYTES = 6 << 30  # address space; 4096x2304 H.264 with two threads needs about 1.5 GiB
KILL_WAIT_S = 10.0  # a killed child is gone at once unless the kernel is stuck
SPAWN_WAIT_S = 60.0
PROTOCOLS = "file,pipe"

LINE_BYTES = 1 << 16
NO_SPACE = b"No space left on device"  # strerror(ENOSPC) in the children's locale, C

_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")
_PATH = re.compile(r"(?:file:)?/[^\s'\",:;]+")


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What one child may use. `file_bytes` bounds each file that it writes."""

    seconds: float
    file_bytes: int = 0
    memory_bytes: int = MEMORY_BYTES


@dataclass(frozen=True, slots=True)
class ChildResult:
    """A child that has ended by itself. `message`: the end of its standard error, without paths."""

    returncode: int
    stdout: bytes
    message: str


def ffprobe(*arguments: str) -> list[str]:
    """Return an ffprobe command that prints errors only and opens nothing but local files."""
    return ["ffprobe", "-v", "error", "-protocol_whitelist", PROTOCOLS, *arguments]


def ffmpeg(*arguments: str) -> list[str]:
    """Return an ffmpeg command that prints errors only and never prompts."""
    return ["ffmpeg", "-v", "error", "-nostdin", "-hide_banner", "-y", *arguments]


def local_input(path: Path, demuxer: str) -> list[str]:
    """Return the input arguments for a hostile file, which allow one demuxer and only local files.

    The name begins with `file:`, so that it is never read as a protocol. The whitelist also applies
    to whatever the demuxer opens in turn.
    """
    return [
        *("-protocol_whitelist", PROTOCOLS, "-format_whitelist", demuxer),
        *("-f", demuxer.partition(",")[0], "-i", f"file:{path.resolve()}"),
    ]


def run(
    command: Sequence[str], limits: ChildLimits, max_output_bytes: int = 1 << 20
) -> ChildResult:
    """Run a child to its end and return what it wrote on standard output.

    Raises:
        DeadlineExceeded: it took longer than `limits.seconds`.
        StageFailed: it wrote more than `max_output_bytes`, or could not be started.
    """
    with Child(command, limits) as child:
        parts: list[bytes] = []
        left = max_output_bytes
        while part := child.read():
            left -= len(part)
            if left < 0:
                raise StageFailed("A media tool printed more output than expected.")
            parts.append(part)
        return ChildResult(child.wait(), b"".join(parts), child.message)


class Child:
    """One running child and its standard output; leaving the `with` block kills it and waits.

    `notes`: a pattern for lines of standard error that are information, not complaints. What it
    matches is kept for `take_note`, in order.
    """

    def __init__(
        self, command: Sequence[str], limits: ChildLimits, notes: re.Pattern[bytes] | None = None
    ) -> None:
        self._deadline = time.monotonic() + limits.seconds
        self._seconds = limits.seconds
        self._pattern = notes
        self._notes: deque[bytes] = deque()
        self._complaints = bytearray()
        self._line = b""  # the unfinished last line of standard error
        self._starter = _Starter(command, limits)
        self._process = self._starter.start()
        self._poll = select.poll()
        assert self._process.stdout is not None and self._process.stderr is not None
        self._out, self._err = self._process.stdout.fileno(), self._process.stderr.fileno()
        with contextlib.suppress(OSError):  # the host may allow less
            fcntl(self._out, F_SETPIPE_SZ, PIPE_BYTES)
        for pipe in (self._out, self._err):
            os.set_blocking(pipe, False)
            self._poll.register(pipe, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def message(self) -> str:
        """What the child complained about, in at most 300 characters and without paths."""
        text = self._complaints.decode("utf-8", "replace")
        lines = [_ADDRESS.sub("", _PATH.sub("input", line)).strip() for line in text.splitlines()]
        printable = "; ".join("".join(c for c in line if c.isprintable()) for line in lines if line)
        return printable[:300]

    def read(self, max_bytes: int = PIPE_BYTES) -> bytes:
        """Wait for standard output and return what is available; empty at the end."""
        buffer = bytearray(max_bytes)
        count = self._read_some(memoryview(buffer))
        return bytes(memoryview(buffer)[:count])

    def read_into(self, view: memoryview) -> int:
        """Fill `view` from standard output; return fewer bytes than its length at the end only."""
        done = 0
        while done < len(view):
            count = self._read_some(view[done:])
            if count == 0:
                break
            done += count
        return done

    def lines(self) -> Iterator[bytes]:
        """Yield standard output line by line, without the line ends."""
        rest = b""
        while part := self.read(LINE_BYTES):
            *whole, rest = (rest + part).split(b"\n")
            if len(rest) > LINE_BYTES:
                raise StageFailed("A media tool printed a longer line than expected.")
            yield from whole
        if rest:
            yield rest

    def take_note(self) -> bytes | None:
        """Return the next note in what the child has printed so far, None if there is none."""
        if not self._notes and self._err >= 0:
            with contextlib.suppress(BlockingIOError):
                self._keep_stderr()
        return self._notes.popleft() if self._notes else None

    def wait(self) -> int:
        """Read on to the end of both outputs, until the deadline; return the exit status.

        Raises:
            StageFailed: this machine's disk is full. ffmpeg reports success all the same if only
                the end of its file is missing.
        """
        while self.read():
            pass
        while self._err >= 0:
            self._wait_for_data()
        try:
            returncode = self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired as exc:
            raise self._too_late() from exc
        if NO_SPACE in self._complaints:
            raise StageFailed("The disk of this worker is full.")
        return returncode

    def kill(self) -> None:
        """Kill the whole group, wait for it, close the pipes. Harmless when done twice."""
        # The leader is not reaped before this line, so its group id cannot belong to another
        # process.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(KILL_WAIT_S)
        self._starter.end()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _read_some(self, view: memoryview) -> int:
        while self._out >= 0:
            try:
                count = os.readv(self._out, [view])
            except BlockingIOError:
                self._wait_for_data()
                continue
            if count:
                return count
            self._poll.unregister(self._out)  # an ended pipe is always ready, so poll would spin
            self._out = -1
        return 0

    def _wait_for_data(self) -> None:
        left = self._deadline - time.monotonic()
        ready = self._poll.poll(left * 1000) if left > 0 else []
        if not ready:
            raise self._too_late()
        if any(pipe == self._err for pipe, _ in ready):
            self._keep_stderr()

    def _keep_stderr(self) -> None:
        data = os.read(self._err, LINE_BYTES)
        if not data:
            self._poll.unregister(self._err)
            self._err = -1
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > LINE_BYTES or not data:
            lines, self._line = [*lines, self._line], b""
        for line in lines:
            note = self._pattern.search(line) if self._pattern else None
            if note:
                self._notes.append(note[0])
            elif b"[info]" not in line:
                self._complaints += (line + b"\n")[: STDERR_BYTES - len(self._complaints)]

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"Reading or writing the media took longer than {self._seconds:.0f} s and was stopped."
        )


class _Starter:
    """The thread that starts one child, and lives as long as it does.

    It gives up its rights first, so that the child never has them. The parent-death signal is sent
    when the *thread* that forked ends, not when the process does. This thread therefore stays, even
    if the thread that requested the child ends early.
    """

    def __init__(self, command: Sequence[str], limits: ChildLimits) -> None:
        program = shutil.which(command[0])
        if program is None:
            raise StageFailed(f"{command[0]} is not installed on this worker.")
        self._program = Path(program)
        self._command = [*_limited(limits), program, *command[1:]]
        self._reads, self._writes = _files_of(command)
        self._is_over = threading.Event()
        self._started: Future[subprocess.Popen[bytes]] = Future()
        # It must not delay the end of this process, which ends the child too.
        self._thread = threading.Thread(target=self._run, name="media-starter", daemon=True)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the child."""
        for path in self._writes:
            path.touch()  # the child may write into it, but may not create files
        self._thread.start()
        return self._started.result(SPAWN_WAIT_S)

    def end(self) -> None:
        """End the thread of a child that has ended."""
        self._is_over.set()
        self._thread.join(KILL_WAIT_S)

    def _run(self) -> None:
        try:
            confine_this_thread(self._program, self._reads, self._writes)
            process = _popen(self._command)
        except OSError as exc:
            refusal = StageFailed(f"{self._program.name} could not be started ({exc.strerror}).")
            refusal.__cause__ = exc
            self._started.set_exception(refusal)
            return
        self._started.set_result(process)
        self._is_over.wait()


def _files_of(command: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return a command's inputs (`-i file:…`) and outputs (other arguments that begin so)."""
    reads: list[Path] = []
    writes: list[Path] = []
    for before, argument in itertools.pairwise(command):
        if argument.startswith("file:"):
            (reads if before == "-i" else writes).append(Path(argument.removeprefix("file:")))
    return reads, writes


def _limited(limits: ChildLimits) -> list[str]:
    """Return the prefix of a command that lowers its limits."""
    cpu_s = int(limits.seconds * 4) + 5  # a backstop behind the deadline: decoders use threads
    return [
        *("setpriv", "--pdeathsig", "KILL", "--no-new-privs", "--"),
        *("prlimit", "--core=0", "--nofile=64", f"--as={limits.memory_bytes}", f"--cpu={cpu_s}"),
        *(f"--fsize={limits.file_bytes}", "--"),
    ]


def _popen(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        start_new_session=True,
    )
