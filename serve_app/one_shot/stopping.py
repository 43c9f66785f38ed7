"""Ends a process that runs one job when it receives a signal: at once, and without leftovers.

1. The first SIGTERM or SIGINT raises `Stopped` in the main thread. Later ones are ignored.
2. The stack unwinds: connections are closed, children ended, temporary folders removed.
3. `end` removes the paths of `remove_at_end` once more, because threads that were not joined may
   have written to them meanwhile. It prints a line and exits. If unwinding takes longer than
   `UNWIND_S`, a thread calls it.
"""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALLED = 128  # plus the number of the signal: the exit code that a shell reports
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
UNWIND_S = 5.0  # the resolver or a disk may hang, and docker kills 10 s after SIGTERM


class Stopped(KeyboardInterrupt):
    """A signal ends this process. It is a KeyboardInterrupt, so that nothing waits for networks."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = SIGNALLED + number


class Stopping:
    """Turns signals into `Stopped` once it is installed, and removes files at the end."""

    def __init__(self) -> None:
        self._paths: list[Path] = []

    def remove_at_end(self, *paths: Path) -> None:
        """Add files and folders that are removed when a signal ends the process."""
        self._paths += paths

    def install(self) -> None:
        """Install the signal handlers. Call this in the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._raise)

    def end(self, stopped: Stopped) -> NoReturn:
        """Remove what is left, print a line, and exit."""
        for path in self._paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        print(f"Stopped by {stopped}; nothing is left behind.", file=sys.stderr, flush=True)
        # Not sys.exit, which would wait for a network that may take another minute.
        os._exit(stopped.exit_code)

    def _raise(self, number: int, _frame: FrameType | None) -> NoReturn:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        stopped = Stopped(number)
        watchdog = threading.Timer(UNWIND_S, self.end, [stopped])
        watchdog.daemon = True
        watchdog.start()
        raise stopped
