"""How a process that does one job ends on a signal: at once, with nothing left behind.

1. The first SIGTERM or SIGINT raises `Stopped` in the main thread. Later ones are ignored.
2. The stack unwinds: connections are closed, children are killed, temporary folders are removed.
3. `end` removes what was given to `remove_at_end` once more, because threads that nothing waits for
   may have written in the meantime. It prints a line and exits. If unwinding takes longer than
   `UNWIND_S`, a thread calls `end`.
"""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from serve_app.one_shot.exit_codes import SIGNALLED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
UNWIND_S = 5.0  # the resolver or a disk may hang; docker kills 10 s after SIGTERM


class Stopped(KeyboardInterrupt):
    """A signal ends this process. A KeyboardInterrupt, so that nothing waits for the networks."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = SIGNALLED + number


class Stopping:
    """Turns signals into `Stopped` once it is installed, and removes what must not be left behind.

    `stopped`: what a signal has raised, even if it was caught on its way. `last_words`: what is
    printed after the name of the signal.
    """

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self.stopped: Stopped | None = None
        self.last_words = "nothing is left behind"

    def remove_at_end(self, *paths: Path) -> None:
        """Remember files and folders that are removed when a signal ends the process."""
        self._paths += paths

    def install(self) -> None:
        """Handle the signals. Only the main thread may call this."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._raise)
        report = sys.unraisablehook

        def hide_stopped(unraisable: "sys.UnraisableHookArgs") -> None:
            # A signal may arrive in a finaliser, where Python drops what it raises and prints a
            # traceback instead. The process then ends after `UNWIND_S`.
            if not isinstance(unraisable.exc_value, Stopped):
                report(unraisable)

        sys.unraisablehook = hide_stopped

    def end(self, stopped: Stopped) -> NoReturn:
        """Remove what is left, print a line, and exit."""
        for path in self._paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        print(f"Stopped by {stopped}; {self.last_words}.", file=sys.stderr, flush=True)
        # Not sys.exit: it would wait for a network that may have a minute to go.
        os._exit(stopped.exit_code)

    def _raise(self, number: int, _frame: FrameType | None) -> NoReturn:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self.stopped = stopped = Stopped(number)
        watchdog = threading.Timer(UNWIND_S, self.end, [stopped])
        watchdog.daemon = True
        watchdog.start()
        raise stopped
