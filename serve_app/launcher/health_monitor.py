"""Polls Serve while the application runs, and logs what changes."""

from __future__ import annotations

import logging
import threading
import time

from serve_app.launcher.ray_cluster import Cluster

logger = logging.getLogger("serve_app.launch")

POLL_S = 5.0  # a poll costs some 10 ms
LOST_S = 60.0  # Serve counts as gone after this much silence


class HealthMonitor(threading.Thread):
    """Polls the running application. `is_lost`: Serve has not answered for `LOST_S`.

    It has a thread of its own, because Serve's controller may hang, and signals have to be handled
    even then.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._unhealthy: tuple[str, ...] = ()
        self._over = threading.Event()
        self.is_lost = False

    def end(self) -> None:
        """Stop polling. A poll that is under way logs nothing any more."""
        self._over.set()

    def run(self) -> None:
        """Poll until the cluster is lost. A controller that died is back within seconds."""
        answered = time.monotonic()
        while not self.is_lost and not self._over.wait(POLL_S):
            try:
                self._compare(self._cluster.state().unhealthy)
            except Exception as exc:
                if self._over.is_set():
                    return
                silent_s = time.monotonic() - answered
                logger.warning(
                    "Serve has not answered for %.0f s (%s)", silent_s, type(exc).__name__
                )
                self.is_lost = silent_s > LOST_S
            else:
                answered = time.monotonic()

    def _compare(self, now: tuple[str, ...]) -> None:
        if now != self._unhealthy:
            logger.warning("deployments that are not healthy: %s", ", ".join(now) or "none now")
            self._unhealthy = now
