"""Measures GPU classes: one machine each, the image's benchmark, its line of JSON, and away.

The line is read from the container's log. A vendor without logs (TensorDock), or a log that cannot
be read, needs an address at which the machine can reach this process: the machine posts its line
there (listener.py).

Whatever happens, what was rented is destroyed. If this process is killed, `lipsync fleet sweep`
does it, because the ledger says that the process is gone.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import BaseModel, Field, ValidationError

from cluster.catalogue.table import FRAMES_PER_MINUTE, GpuClass, Speed
from cluster.fleet.cells import Cells
from cluster.fleet.listener import Listener
from cluster.rental.errors import NotOffered, RentalError, VendorDown
from cluster.rental.identity import Kind
from cluster.rental.values import Instance, InstanceState

MAX_AT_ONCE = 8


class Line(BaseModel):
    """The line that `bench` prints. Other fields are ignored."""

    frames_per_s: float = Field(gt=0)
    seconds: float | None = None
    peak_vram_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one class: a measurement, or why there is none. `paid_usd` is an estimate from
    the time for which the machine was rented.
    """

    gpu_class: GpuClass
    line: Line | None
    usd_per_hour: float | None
    paid_usd: float
    reason: str = ""

    @property
    def usd_per_minute(self) -> float | None:
        """Return the dollars for a finished minute."""
        if self.line is None or self.usd_per_hour is None:
            return None
        return self.usd_per_hour / 3600 * FRAMES_PER_MINUTE / self.line.frames_per_s

    def speed(self, date: str, vendor: str) -> Speed | None:
        """Return the measurement as the catalogue keeps it."""
        if self.line is None:
            return None
        return Speed(
            frames_per_s=self.line.frames_per_s,
            vram_mib=self.line.peak_vram_mib,
            date=date,
            source=f"lipsync fleet bench at {vendor}",
        )


def measure(
    cells: Cells,
    classes: Sequence[GpuClass],
    *,
    within_s: float,
    say: Callable[[str], None],
    listener: Listener | None = None,
    poll_s: float = 10.0,
) -> list[Outcome]:
    """Measure classes at the same time, each on a machine of its own."""
    stop = threading.Event()
    runs = [_Run(cells, one, within_s, say, listener, poll_s, stop) for one in classes]
    with ThreadPoolExecutor(MAX_AT_ONCE) as pool:
        try:
            return list(pool.map(_Run.outcome, runs))
        finally:
            stop.set()  # after Ctrl-C, the threads return their machines and end


def cheapest(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome with the fewest dollars for a finished minute."""
    known = [one for one in outcomes if one.usd_per_minute is not None]
    return min(known, key=lambda one: one.usd_per_minute or 0.0, default=None)


def fastest(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome with the most frames per second."""
    known = [one for one in outcomes if one.line is not None]
    return max(known, key=lambda one: one.line.frames_per_s if one.line else 0.0, default=None)


@dataclass(frozen=True, slots=True)
class _Run:
    cells: Cells
    gpu_class: GpuClass
    within_s: float
    say: Callable[[str], None]
    listener: Listener | None
    poll_s: float
    stop: threading.Event

    def outcome(self) -> Outcome:
        """Rent, wait for the line, and return the machine."""
        if self.stop.is_set():
            return Outcome(self.gpu_class, None, None, 0.0, "It was not begun.")
        began = time.monotonic()
        token = self.listener.new_token() if self.listener is not None else ""
        try:
            made = self.cells.rent(self.gpu_class, Kind.BENCH, *self._words(token))
        except (RentalError, ValueError) as exc:
            return Outcome(self.gpu_class, None, None, 0.0, str(exc))
        self.say(f"{self.gpu_class.name}: rented {made.instance_id}.")
        line, reason = None, ""
        try:
            line, reason = self._wait(made, token, began + self.within_s)
        except RentalError as exc:
            reason = str(exc)
        finally:
            reason = self._return(made) or reason
        usd = made.usd_per_hour or self._price(made)
        paid = (usd or 0.0) * (time.monotonic() - began) / 3600
        return Outcome(self.gpu_class, line, usd, paid, reason)

    def _return(self, made: Instance) -> str:
        """Destroy the machine. Return why that failed, or nothing."""
        try:
            self.cells.rentals.destroy(made.instance_id)
        except RentalError as exc:
            return f"{made.name} was NOT returned: {exc} `lipsync fleet sweep --yes` returns it."
        self.say(f"{self.gpu_class.name}: returned {made.instance_id}.")
        return ""

    def _words(self, token: str) -> tuple[str, ...]:
        if self.listener is None:
            return ("bench", "--json")
        url = shlex.quote(self.listener.url(token))
        return (
            "sh",
            "-c",
            "lipsync bench --json > /tmp/bench.json; cat /tmp/bench.json; "
            f"curl -fsS --retry 5 -X POST --data-binary @/tmp/bench.json {url}",
        )

    def _wait(self, made: Instance, token: str, deadline: float) -> tuple[Line | None, str]:
        rentals = self.cells.rentals
        while time.monotonic() < deadline and not self.stop.is_set():
            text = self.listener.posted(token) if self.listener else self._log(made.instance_id)
            line = read_line(text)
            if line is not None:
                return line, ""
            found = rentals.get(made.instance_id)
            if found is None or found.state is InstanceState.FAILED:
                return None, "The machine was lost before it had printed its result."
            self.stop.wait(self.poll_s)
        if self.stop.is_set():
            return None, "It was interrupted."
        return None, f"No result came within {self.within_s:.0f} s."

    def _log(self, instance_id: str) -> str:
        try:
            return self.cells.rentals.backend.logs(instance_id)
        except NotOffered:
            raise
        except (VendorDown, RentalError):
            return ""  # a machine that is starting has none; the deadline ends the wait

    def _price(self, made: Instance) -> float | None:
        rents = self.cells.rentals.ledger.live()
        return next((one.usd_per_hour for one in rents if one.name == made.name), None)


def read_line(text: str) -> Line | None:
    """Return the last line of a log that is a result, or None."""
    for line in reversed(text.splitlines()):
        if line.lstrip().startswith("{"):
            try:
                return Line.model_validate_json(line)
            except ValidationError:
                continue
    return None
