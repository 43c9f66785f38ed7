"""How a process that does one job ends when a signal asks it to: at once, with nothing left behind.

1. The first SIGTERM or SIGINT raises `Stopped` in the main thread; later ones are ignored.
2. The stack unwinds: connections close, children die, temporary folders go.
3. `end` removes what was named to `remove_at_end` once more, because threads that nobody waits for
   may have written on meanwhile, says so, and exits. If unwinding takes longer than `UNWIND_S`, it
   does so from a thread.
"""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALLED = 128  # plus the signal's number: a shell's exit code of a process that it ended
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
UNWIND_S = 5.0  # the resolver or a disk may hang; docker kills 10 s after SIGTERM


class Stopped(KeyboardInterrupt):
    """A signal ends this process. A KeyboardInterrupt, so that nothing waits for the networks."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = SIGNALLED + number


class Stopping:
    """Turns signals into `Stopped` once it is installed, and knows what must not be left behind."""

    def __init__(self) -> None:
        self._paths: list[Path] = []

    def remove_at_end(self, *paths: Path) -> None:
        """Name files and folders that go when a signal ends the process."""
        self._paths += paths

    def install(self) -> None:
        """Take the signals; in the main thread only."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._raise)

    def end(self, stopped: Stopped) -> NoReturn:
        """Remove what is left, say so, and exit."""
        for path in self._paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        print(f"Stopped by {stopped}; nothing is left behind.", file=sys.stderr, flush=True)
        # Not sys.exit: it would wait for a network that may have a minute to go.
        os._exit(stopped.exit_code)

    def _raise(self, number: int, _frame: FrameType | None) -> NoReturn:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        stopped = Stopped(number)
        watchdog = threading.Timer(UNWIND_S, self.end, [stopped])
        watchdog.daemon = True
        watchdog.start()
        raise stopped
