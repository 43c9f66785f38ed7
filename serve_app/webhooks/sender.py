"""Signed notifications of a job's end, by the Standard Webhooks scheme, kept until delivered.

    enqueue ─► SQLite ─► taken under a lease ─► POST ─► 2xx, or given up ─► gone
                  ▲                               │
                  └──── due again, later and later┘

An event survives a restart and may arrive twice, with the same `webhook-id`, so that the receiver
can recognise it. Strangers choose the targets, so the same rules apply as to downloads: every
address of the host is checked, the connection goes to a checked address, and redirects are not
followed. Target URLs may contain tokens, so logs name only their hosts.

Scheme: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from musetalk_pipeline.errors import SourceRefused
from orchestrator.net.connections import DEFAULT_NETWORK, Network
from orchestrator.webhooks.posting import Poster, signing_key
from orchestrator.webhooks.rules import DeliveryFailed, DeliveryRules
from serve_app.net.addresses import AddressPolicy, parse_location
from serve_app.webhooks.events import Event, EventStore, TakenEvent

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

IDLE_POLL_S = 30.0  # another process may have added an event to the file


class WebhookSender:
    """Stores events in the file `path` and delivers them.

    `secret` is `whsec_` and base64. Several processes may share `path`.

    Raises:
        ValueError: the secret does not have that form; the message does not repeat it.
    """

    def __init__(
        self,
        path: Path,
        secret: str,
        *,
        policy: AddressPolicy,
        network: Network = DEFAULT_NETWORK,
        rules: DeliveryRules | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = signing_key(secret)
        self._rules = rules = rules or DeliveryRules()
        self._poster = Poster(policy, rules.timeout_s, network=network, clock=clock)
        self._clock = clock
        self._store = EventStore(path, self._rules, clock)
        # A thread of its own, so that a file that another process locks delays nothing else.
        self._thread = ThreadPoolExecutor(1, "webhooks")
        self._wake = asyncio.Event()

    async def check_target(self, url: str) -> None:
        """Check a target before a job with it is accepted.

        Raises:
            SourceRefused: not http(s), malformed, or at an address that is not allowed. A name that
                does not resolve now is accepted, because it may resolve later.
        """
        await self._poster.check(parse_location(url))

    async def enqueue(self, event: Event) -> bool:
        """Store an event for delivery. Return False if too many wait and this one is dropped.

        That is logged, and the job's state stays readable over the API.
        """
        stored = await self._in_thread(self._store.add, event.id, event.url, event.body())
        if not stored:
            logger.error("webhook dropped: the queue is full", extra={"event_id": event.id})
        self._wake.set()
        return stored

    def pending(self) -> int:
        """Return how many events wait."""
        return self._store.count()

    async def deliver_forever(self) -> None:
        """Deliver events that are due, a few concurrently, until cancelled."""
        slots = asyncio.Semaphore(self._rules.concurrent)
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                await slots.acquire()
                taken = await self._in_thread(self._store.take)
                if taken is None:
                    slots.release()
                    await self._wait_for_due()
                    continue
                tasks.create_task(self._deliver_in_slot(taken, slots))

    def close(self) -> None:
        """Close the file."""
        self._store.close()
        self._thread.shutdown(wait=False)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def _wait_for_due(self) -> None:
        due = await self._in_thread(self._store.next_due)
        wait_s = IDLE_POLL_S if due is None else min(IDLE_POLL_S, due - self._clock())
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._wake.wait()

    async def _deliver_in_slot(self, taken: TakenEvent, slots: asyncio.Semaphore) -> None:
        try:
            await self._deliver_or_count(taken)
        except Exception:
            # The loop must go on. The event is tried again when its lease has expired.
            logger.exception(
                "webhook could not be updated after a try", extra={"event_id": taken.id}
            )
        finally:
            slots.release()

    async def _deliver_or_count(self, taken: TakenEvent) -> None:
        """Make one try. An unexpected exception counts as a failed try."""
        if taken.tries > len(self._rules.pauses_s) + 1:
            # Earlier tries ended with their process, or their result could not be stored.
            await self._give_up(taken, "every try was interrupted")
            return
        try:
            await self._deliver(taken)
        except Exception as exc:
            logger.exception("webhook failed", extra={"event_id": taken.id})
            await self._failed(taken, DeliveryFailed(f"failed unexpectedly ({type(exc).__name__})"))

    async def _deliver(self, taken: TakenEvent) -> None:
        """Make one try and store its result."""
        try:
            location = parse_location(taken.url)
            await self._poster.post(taken.id, location, taken.body, self._key)
        except SourceRefused as exc:
            await self._give_up(taken, exc.message)
        except DeliveryFailed as failure:
            await self._failed(taken, failure)
        else:
            await self._in_thread(self._store.remove, taken.id)
            logger.info("webhook delivered", extra={"event_id": taken.id, "host": location.host})

    async def _failed(self, taken: TakenEvent, failure: DeliveryFailed) -> None:
        now = self._clock()
        pause_s = self._rules.pause_s(failure, taken.tries, now - taken.created)
        if pause_s is None:
            await self._give_up(taken, failure.reason)
            return
        due = now + pause_s
        await self._in_thread(self._store.postpone, taken.id, due)
        self._wake.set()
        logger.info("webhook will be tried again", extra=_facts(taken, failure.reason))

    async def _give_up(self, taken: TakenEvent, reason: str) -> None:
        logger.warning("webhook given up", extra=_facts(taken, reason))
        await self._in_thread(self._store.remove, taken.id)


def _facts(taken: TakenEvent, reason: str) -> dict[str, object]:
    with suppress(SourceRefused):
        host = parse_location(taken.url).host
        return {"event_id": taken.id, "host": host, "try": taken.tries, "reason": reason}
    return {"event_id": taken.id, "try": taken.tries, "reason": reason}
