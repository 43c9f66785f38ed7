"""Counts the signals that stop the launcher."""

from __future__ import annotations

import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequests:
    """Counts the requests to stop. The first one lets running jobs finish, and the second does not.

    `count`: how many have come.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self.count = 0

    def install(self) -> None:
        """Handle the signals; call it again after `ray.init`, which takes SIGTERM for itself."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def wait(self, seconds: float) -> bool:
        """Wait for the first request; return True if there is one."""
        return self._requested.wait(seconds)

    def request(self) -> None:
        """Count one more request."""
        self.count += 1
        self._requested.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request()
        if self.count > 2:  # the stop itself hangs, so the next signal ends this process
            signal.signal(number, signal.SIG_DFL)
