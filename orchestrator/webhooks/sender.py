"""Delivers what is due, by the store's queue. Several processes may do so on one database.

    take, under a lease ─► POST, signed with the client's key ─► delivered, due again, or failed

A delivery survives a restart, and may arrive twice with the same `webhook-id`. Targets may contain
tokens, so logs name only their hosts.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

from orchestrator.net.addresses import AddressRefused, parse_location
from orchestrator.store.delivery_values import TakenDelivery, Try
from orchestrator.store.errors import StoreError
from orchestrator.store.threads import Run
from orchestrator.webhooks.posting import SECRET_PREFIX, Poster, signing_key
from orchestrator.webhooks.rules import DeliveryFailed, DeliveryRules

logger = logging.getLogger(__name__)

POLL_S = 5.0  # another process may have queued a delivery
FAILED_PAUSE_S = 5.0


def client_key(secret: str, client: str) -> bytes:
    """Return the key that signs the webhooks of a client; see `client_secret`."""
    return signing_key(client_secret(secret, client))


def client_secret(secret: str, client: str) -> str:
    """Return the secret that a client verifies its webhooks with.

    Each client has its own, which follows from the service's, so that no client can sign for
    another.
    """
    key = hmac.digest(signing_key(secret), f"webhooks of {client}".encode(), "sha256")
    return SECRET_PREFIX + b64encode(key).decode()


class DeliveryStore(Protocol):
    """Where deliveries are queued; its methods block. See `orchestrator.store.deliveries`."""

    def take_delivery(self, lease_s: float) -> TakenDelivery | None:
        """Lease the delivery that has been due longest; None if none is due."""
        ...

    def settle_delivery(self, taken: TakenDelivery, result: Try, pause_s: float | None) -> bool:
        """Store the result of a try. Return False if it does not count."""
        ...

    def seconds_to_next_delivery(self) -> float | None:
        """Return how soon the next delivery is due; None if there is none."""
        ...


class DeliveryLoop:
    """Delivers for one service.

    Args:
        run: calls the store in a thread.
        key_of: returns the key that signs what is sent for a client.
        data_of: returns the job or batch of an event, as its callers see it.
        count: is called with what became of each try: delivered, waiting, given_up.
    """

    def __init__(
        self,
        store: DeliveryStore,
        run: Run,
        poster: Poster,
        key_of: Callable[[str], bytes],
        data_of: Callable[[TakenDelivery], Mapping[str, Any]],
        rules: DeliveryRules | None = None,
        count: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._store, self._run, self._poster = store, run, poster
        self._key_of, self._data_of = key_of, data_of
        self._rules = rules or DeliveryRules()
        self._count = count
        self._woken = asyncio.Event()

    async def check_target(self, url: str) -> None:
        """Check a target before a job with it is accepted.

        Raises:
            AddressRefused: it is malformed, or at an address that is not allowed. A name that does
                not resolve now is accepted, because it may resolve later.
        """
        await self._poster.check(parse_location(url))

    def wake(self) -> None:
        """Find out now whether something is due."""
        self._woken.set()

    async def deliver_forever(self) -> None:
        """Deliver what is due, a few concurrently, until cancelled."""
        slots = asyncio.Semaphore(self._rules.concurrent)
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                await slots.acquire()
                taken = await self._take()
                if taken is None:
                    slots.release()
                    await self._wait()
                    continue
                tasks.create_task(self._deliver_in_slot(taken, slots))

    async def _take(self) -> TakenDelivery | None:
        try:
            return await self._run(self._store.take_delivery, self._rules.lease_s)
        except StoreError as error:
            logger.error("deliveries cannot be taken", extra={"error": str(error)})
            await asyncio.sleep(FAILED_PAUSE_S)
            return None

    async def _wait(self) -> None:
        try:
            due_s = await self._run(self._store.seconds_to_next_delivery)
        except StoreError:
            due_s = None
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S if due_s is None else min(POLL_S, due_s)):
                await self._woken.wait()

    async def _deliver_in_slot(self, taken: TakenDelivery, slots: asyncio.Semaphore) -> None:
        try:
            await self._deliver(taken)
        except Exception:
            # The loop must go on. The delivery is tried again when its lease has expired.
            logger.exception("a try could not be stored", extra={"event_id": taken.id})
        finally:
            slots.release()
            self.wake()

    async def _deliver(self, taken: TakenDelivery) -> None:
        """Make one try and store its result."""
        if taken.tries > len(self._rules.pauses_s) + 1:
            # Earlier tries ended with their process, or their result could not be stored.
            result, pause_s = Try(None, "every try was interrupted"), None
        else:
            result, pause_s = await self._try(taken)
        await self._run(self._store.settle_delivery, taken, result, pause_s)
        facts = {
            "event_id": taken.id,
            "try": taken.tries,
            "code": result.code,
            "host": _host(taken),
        }
        if result.is_accepted:
            self._count("delivered")
            logger.info("webhook delivered", extra=facts)
        else:
            self._count("given_up" if pause_s is None else "waiting")
            text = "webhook given up" if pause_s is None else "webhook will be tried again"
            logger.warning(text, extra={**facts, "reason": result.error})

    async def _try(self, taken: TakenDelivery) -> tuple[Try, float | None]:
        """Return the result of one try, and the pause after it; None: there is no next one."""
        try:
            key, location = self._key_of(taken.client), parse_location(taken.url)
            body = event_text(taken, self._data_of(taken))
            return Try(await self._poster.post(taken.id, location, body, key)), None
        except AddressRefused as refused:
            return Try(None, refused.reason), None
        except DeliveryFailed as failed:
            failure = failed
        except Exception as error:
            logger.exception("webhook failed", extra={"event_id": taken.id})
            failure = DeliveryFailed(f"failed unexpectedly ({type(error).__name__})")
        pause_s = self._rules.pause_s(failure, taken.tries, taken.age_s)
        return Try(failure.status, failure.reason), pause_s


def event_text(taken: TakenDelivery, data: Mapping[str, Any]) -> str:
    """Return the payload that is signed, in the form that the scheme recommends."""
    happened = datetime.fromtimestamp(taken.created_at, UTC).isoformat(timespec="milliseconds")
    payload = {
        "type": taken.event,
        "timestamp": happened.replace("+00:00", "Z"),
        "data": dict(data),
    }
    return json.dumps(payload, separators=(",", ":"), allow_nan=False)


def _host(taken: TakenDelivery) -> str | None:
    with suppress(AddressRefused):
        return parse_location(taken.url).host
    return None
