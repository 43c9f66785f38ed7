"""Gauges that keep their values.

Ray forgets the value of a gauge that has not been set for two of its export intervals, 20 s in all.
Many values here change more rarely than that.
"""

import threading
import time

from ray.util.metrics import Gauge

PAUSE_S = 5.0  # half an export interval

_kept: list["KeptGauge"] = []
_starting = threading.Lock()
_thread: threading.Thread | None = None


class KeptGauge(Gauge):  # type: ignore[misc]
    """A gauge whose values last as long as the process, once `keep_gauges` has been called."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        super().__init__(name, description, tag_keys)
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        _kept.append(self)

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        """Set the value for these tags."""
        self._values[tuple(sorted((tags or {}).items()))] = value
        super().set(value, tags)

    def set_again(self) -> None:
        """Set every value once more."""
        for tags, value in list(self._values.items()):
            super().set(value, dict(tags))


def keep_gauges() -> None:
    """Begin to set all gauges of this process again and again. Further calls do nothing."""
    global _thread
    with _starting:
        if _thread is None:
            _thread = threading.Thread(target=_set_forever, name="gauges", daemon=True)
            _thread.start()


def _set_forever() -> None:
    while True:
        time.sleep(PAUSE_S)
        for gauge in _kept:
            gauge.set_again()
