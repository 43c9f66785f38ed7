"""Heartbeats in a thread with an event loop and connections of their own.

Whatever blocks the application's loop, a job included, cannot hold them up (known fault 4), and
nothing that one of them meets ends them: refusals, silence, TLS faults, bugs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.client import ClaimedJob, HeartbeatAnswer, Status, WorkerClient
from orchestrator.errors import OrchestratorError

logger = logging.getLogger(__name__)

JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the next heartbeat says. `error`: why the worker cannot work at present. `jobs`: all
    that it holds, the oldest first.
    """

    status: Status
    current_job_id: str | None = None
    error: str | None = None
    jobs: tuple[ClaimedJob, ...] = ()


class Heartbeats:
    """Sends one heartbeat every `interval_s` from `start` to `stop`, the first at once.

    `connect` makes the thread's own client. `pulse` is called in the thread, before each beat; None
    means that another process speaks for this worker, and nothing is sent. `heard` is called in the
    thread with each answer.
    """

    def __init__(
        self,
        connect: Callable[[], WorkerClient],
        pulse: Callable[[], Pulse | None],
        interval_s: float,
        *,
        heard: Callable[[HeartbeatAnswer], None],
    ) -> None:
        self._connect = connect
        self._pulse = pulse
        self._heard = heard
        self._interval_s = interval_s
        self._thread: threading.Thread | None = None
        self._cancel: Callable[[], None] | None = None
        self._ready = threading.Event()

    def start(self) -> None:
        """Start the thread; once."""
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Blocks for a moment."""
        if self._thread is None:
            return
        self._ready.wait(JOIN_S)
        if self._cancel is not None:
            with suppress(RuntimeError):  # the loop is closed: the thread has ended by itself
                self._cancel()
        self._thread.join(JOIN_S)
        self._thread = None

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            task = loop.create_task(self._beat_forever())
            self._cancel = lambda: _cancel_in(loop, task)
            self._ready.set()
            with suppress(asyncio.CancelledError):  # `stop` asked for it
                loop.run_until_complete(task)

    async def _beat_forever(self) -> None:
        client = self._connect()
        loop = asyncio.get_running_loop()
        introduced = False
        due = loop.time()
        try:
            while True:
                introduced = await self._beat(client, introduced)
                due = next_due(due, loop.time(), self._interval_s)
                await asyncio.sleep(due - loop.time())
        finally:
            await client.aclose()

    async def _beat(self, client: WorkerClient, introduced: bool) -> bool:
        """Send one heartbeat; True unless the orchestrator does not know this worker."""
        try:
            pulse = self._pulse()
            if pulse is None:
                return introduced
            if not introduced:
                await self._introduce(client)
            self._heard(
                await client.heartbeat(pulse.status, pulse.current_job_id, pulse.error, pulse.jobs)
            )
        except OrchestratorError as exc:
            logger.warning(
                "heartbeat not accepted", extra={"error": exc.message, "status": exc.status_code}
            )
            # 404: it lost its memory. Introduce the worker again before the next beat.
            return exc.status_code != 404
        except Exception:
            # The boundary of the thread: no surprise may end the heartbeats.
            logger.exception("heartbeat failed")
        return True

    async def _introduce(self, client: WorkerClient) -> None:
        try:
            await client.register()
        except OrchestratorError as exc:
            # Registration is optional in the protocol; the heartbeat that follows matters.
            logger.info("registration not accepted", extra={"error": exc.message})


def next_due(due: float, now: float, interval_s: float) -> float:
    """Return when the beat after the one that was due at `due` is to be sent.

    Beats keep to their grid however long the answers take; those that a slow answer made impossible
    are left out.
    """
    missed = max(0, int((now - due) // interval_s))
    return due + (missed + 1) * interval_s


def _cancel_in(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    loop.call_soon_threadsafe(task.cancel)
