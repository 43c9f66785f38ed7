"""Heartbeats, sent by a thread with an event loop and connections of its own.

Nothing that blocks the application's loop, such as a job, can delay them (known fault 4). Refusals,
silence, TLS faults and bugs do not end them.
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
class HeartbeatState:
    """The content of the next heartbeat.

    `error` is why the worker cannot run jobs at present. `jobs` are all that it holds, the oldest
    first.
    """

    status: Status
    current_job_id: str | None = None
    error: str | None = None
    jobs: tuple[ClaimedJob, ...] = ()


class Heartbeats:
    """Sends one heartbeat every `interval_s` from `start` to `stop`, the first one immediately.

    Args:
        connect: makes the thread's own client.
        state: called in the thread before each heartbeat. If it returns None, another process owns
            the identity, and nothing is sent.
        on_answer: called in the thread with each answer.
    """

    def __init__(
        self,
        connect: Callable[[], WorkerClient],
        state: Callable[[], HeartbeatState | None],
        interval_s: float,
        *,
        on_answer: Callable[[HeartbeatAnswer], None],
    ) -> None:
        self._connect = connect
        self._state = state
        self._on_answer = on_answer
        self._interval_s = interval_s
        self._thread: threading.Thread | None = None
        self._cancel: Callable[[], None] | None = None
        self._ready = threading.Event()

    def start(self) -> None:
        """Start the thread. Call it once."""
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Blocks for a moment."""
        if self._thread is None:
            return
        self._ready.wait(JOIN_S)
        if self._cancel is not None:
            with suppress(RuntimeError):  # the loop is closed, as the thread has ended by itself
                self._cancel()
        self._thread.join(JOIN_S)
        self._thread = None

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            task = loop.create_task(self._beat_forever())
            self._cancel = lambda: _cancel_in(loop, task)
            self._ready.set()
            with suppress(asyncio.CancelledError):  # from `stop`
                loop.run_until_complete(task)

    async def _beat_forever(self) -> None:
        client = self._connect()
        loop = asyncio.get_running_loop()
        is_registered = False
        due = loop.time()
        try:
            while True:
                is_registered = await self._beat(client, is_registered)
                due = next_due(due, loop.time(), self._interval_s)
                await asyncio.sleep(due - loop.time())
        finally:
            await client.aclose()

    async def _beat(self, client: WorkerClient, is_registered: bool) -> bool:
        """Send one heartbeat. Return False if the worker has to register before the next one."""
        try:
            state = self._state()
            if state is None:
                return is_registered
            if not is_registered:
                await self._register(client)
            self._on_answer(
                await client.heartbeat(state.status, state.current_job_id, state.error, state.jobs)
            )
        except OrchestratorError as exc:
            logger.warning(
                "heartbeat not accepted", extra={"error": exc.message, "status": exc.status_code}
            )
            # 404 means that the orchestrator has lost its state.
            return exc.status_code != 404
        except Exception:
            # The boundary of the thread: no unexpected error may end the heartbeats.
            logger.exception("heartbeat failed")
        return True

    async def _register(self, client: WorkerClient) -> None:
        try:
            await client.register()
        except OrchestratorError as exc:
            # Registration is optional in the protocol. The heartbeat that follows is not.
            logger.info("registration not accepted", extra={"error": exc.message})


def next_due(due: float, now: float, interval_s: float) -> float:
    """Return the time of the heartbeat after the one that was due at `due`.

    Heartbeats keep to their grid however long the answers take. Those that a slow answer has made
    impossible are left out.
    """
    missed = max(0, int((now - due) // interval_s))
    return due + (missed + 1) * interval_s


def _cancel_in(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    loop.call_soon_threadsafe(task.cancel)
