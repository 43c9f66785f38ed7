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
import base64
import binascii
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

import httpcore
from standardwebhooks import Webhook

from musetalk_pipeline.errors import SourceRefused
from serve_app.net.addresses import AddressPolicy, Location, parse_location
from serve_app.net.connections import DEFAULT_NETWORK, Network, PinnedClient
from serve_app.webhooks.events import DeliveryRules, Event, EventStore, TakenEvent

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # the scheme's own bounds
USER_AGENT = "lipsync-serve-webhooks/1"
IDLE_POLL_S = 30.0  # another process may have added an event to the file


class _DeliveryFailed(Exception):
    """A failed try. `retry_after_s` comes from the target; `final` if it accepts no more events."""

    def __init__(
        self, reason: str, *, retry_after_s: float | None = None, final: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.final = final


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
        self._signer = Webhook(signing_key(secret))
        self._rules = rules = rules or DeliveryRules()
        self._client = PinnedClient(
            network, policy, connect_s=rules.timeout_s, stall_s=rules.timeout_s
        )
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
        location = parse_location(url)
        with suppress(OSError):
            await self._client.resolve(location)

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
            await self._failed(
                taken, _DeliveryFailed(f"failed unexpectedly ({type(exc).__name__})")
            )

    async def _deliver(self, taken: TakenEvent) -> None:
        """Make one try and store its result."""
        try:
            location = parse_location(taken.url)
            async with asyncio.timeout(self._rules.timeout_s):
                await self._post(taken, location)
        except SourceRefused as exc:
            await self._give_up(taken, exc.message)
        except TimeoutError:
            await self._failed(taken, _DeliveryFailed("no answer in time"))
        except _DeliveryFailed as failure:
            await self._failed(taken, failure)
        else:
            await self._in_thread(self._store.remove, taken.id)
            logger.info("webhook delivered", extra={"event_id": taken.id, "host": location.host})

    async def _failed(self, taken: TakenEvent, failure: _DeliveryFailed) -> None:
        pauses = self._rules.pauses_s
        if failure.final or taken.tries > len(pauses):
            await self._give_up(taken, failure.reason)
            return
        pause_s = pauses[taken.tries - 1] * random.uniform(0.8, 1.2)
        if failure.retry_after_s is not None:
            pause_s = max(pause_s, min(failure.retry_after_s, self._rules.max_retry_after_s))
        due = self._clock() + pause_s
        if due > taken.created + self._rules.max_age_s:
            await self._give_up(taken, failure.reason)
            return
        await self._in_thread(self._store.postpone, taken.id, due)
        self._wake.set()
        logger.info("webhook will be tried again", extra=_facts(taken, failure.reason))

    async def _give_up(self, taken: TakenEvent, reason: str) -> None:
        logger.warning("webhook given up", extra=_facts(taken, reason))
        await self._in_thread(self._store.remove, taken.id)

    async def _post(self, taken: TakenEvent, location: Location) -> None:
        """Send one signed request.

        Raises:
            SourceRefused: the target may not be connected to.
            _DeliveryFailed: it did not accept the event.
        """
        try:
            addresses = await self._client.resolve(location)
        except OSError as exc:
            raise _DeliveryFailed("the host name cannot be resolved") from exc
        headers, content = self._headers(taken), taken.body.encode()
        try:
            async with self._client.stream(
                "POST", location, addresses, headers=headers, content=content
            ) as response:
                _raise_unless_accepted(response)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as exc:
            raise _DeliveryFailed(f"the connection failed ({type(exc).__name__})") from exc

    def _headers(self, taken: TakenEvent) -> dict[str, str]:
        # Each try has a signature of its own, because receivers reject old timestamps.
        sent = datetime.fromtimestamp(int(self._clock()), UTC)
        return {
            "Content-Type": "application/json",
            "Content-Length": str(len(taken.body.encode())),
            "User-Agent": USER_AGENT,
            "webhook-id": taken.id,
            "webhook-timestamp": str(int(sent.timestamp())),
            "webhook-signature": self._signer.sign(taken.id, sent, taken.body),
        }


def signing_key(secret: str) -> bytes:
    """Return the key of a `whsec_…` secret.

    Raises:
        ValueError: not base64 of 24 to 64 bytes. The message does not repeat the secret.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"the webhook secret must be {SECRET_PREFIX} and the base64 of {MIN_SECRET_BYTES} to "
            f"{MAX_SECRET_BYTES} random bytes"
        )
    return key


def _raise_unless_accepted(response: httpcore.Response) -> None:
    """Raise unless the response accepts the event. Its body is not read."""
    if 200 <= response.status < 300:
        return
    reason = f"answered {response.status}"
    # By the scheme, 410 means that the target accepts no more events.
    raise _DeliveryFailed(
        reason, retry_after_s=_retry_after_s(response), final=response.status == 410
    )


def _retry_after_s(response: httpcore.Response) -> float | None:
    for name, value in response.headers:
        if name.lower() == b"retry-after" and value.strip().isdigit():
            return float(value.strip()[:9])
    return None


def _facts(taken: TakenEvent, reason: str) -> dict[str, object]:
    with suppress(SourceRefused):
        host = parse_location(taken.url).host
        return {"event_id": taken.id, "host": host, "try": taken.tries, "reason": reason}
    return {"event_id": taken.id, "try": taken.tries, "reason": reason}
