"""A burst of jobs on a pool that is at zero: how soon it starts, and whether it flaps."""

from __future__ import annotations

import threading
import time
from itertools import groupby, pairwise
from typing import Any

from scaling_site import Run, Site, at_once

# As quick as one can look at. With weights to load, minutes are right.
SCALING = {"drain_s": 8.0, "idle_s": 6.0, "idle_loads": 1.0, "load_s": 2.0, "job_frames": 20}
LOOK_S = 0.25  # between two questions; one costs the application some milliseconds
END_S = 120.0  # from the end of the jobs until the pool is at zero again


class PoolWatch:
    """Asks the application about its pool all the time, in a thread."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.looks: list[tuple[float, dict[str, Any]]] = []  # by the time in Unix seconds

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def until_idle(self) -> None:
        """Wait until no replica runs or is wanted, and stop looking."""
        deadline = time.monotonic() + END_S
        while any(self.looks[-1][1][key] for key in ("wanted", "starting", "running")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the pool does not go back to zero: {self.looks[-1][1]}")
            time.sleep(LOOK_S)
        self._over.set()
        self._thread.join()

    def steps(self, key: str) -> list[int]:
        """Return how a number changed."""
        return [number for number, _ in groupby(pool[key] for _, pool in self.looks)]

    def first(self, key: str) -> float:
        """Return when a number was first above zero."""
        return next(at for at, pool in self.looks if pool[key])

    def _look(self) -> None:
        while not self._over.is_set():
            [pool] = self._site.client.get("/health").json()["pools"]
            self.looks.append((time.time(), pool))
            self._over.wait(LOOK_S)


def flaps(steps: list[int]) -> int:
    """Return how often a number went up again after it had gone down."""
    ways = [after > before for before, after in pairwise(steps)]
    return sum(is_up and not was_up for was_up, is_up in pairwise(ways))


def measure_burst(site: Site, most: int) -> dict[str, Any]:
    """Send two jobs for each of `most` replicas at once, to a pool that has none."""
    pool = {"name": "gpu", "replicas": 0, "max_replicas": most, "frames_per_s": site.frames_per_s}
    site.deploy_scaled(SCALING, pool)
    watch = PoolWatch(site)

    def work() -> None:
        watch.start()
        at_once(site, [site.short] * 2 * most)
        watch.until_idle()

    run = site.run(work)
    began = min(at for at, _ in watch.looks)
    print("burst, wanted:", watch.steps("wanted"), "running:", watch.steps("running"), flush=True)
    return {
        "burst_first_wanted_s": round(watch.first("wanted") - began, 2),
        "burst_first_start_s": round(watch.first("starting") - began, 2),
        "burst_first_running_s": round(watch.first("running") - began, 2),
        "burst_jobs_s": round(jobs_s(run), 2),
        "burst_starts": sum(call.kind == "start" for call in run.calls),
        "burst_most_running": max(watch.steps("running")),
        "burst_running_counts": len(watch.steps("running")),
        "burst_flaps": flaps(watch.steps("wanted")) + flaps(watch.steps("running")),
    }


def jobs_s(run: Run) -> float:
    """Return how long it took until the last piece was encoded."""
    return max(call.ended for call in run.calls if call.kind == "compose") - run.began
