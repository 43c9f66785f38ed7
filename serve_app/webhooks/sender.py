"""Signed notifications of a job's end, by the Standard Webhooks scheme, kept until delivered.

    enqueue ─► SQLite ─► taken under a lease ─► POST ─► 2xx, or given up ─► gone
                  ▲                               │
                  └──── due again, later and later┘

An event survives a restart, and may arrive twice: its `webhook-id` stays the same, so that the
receiver can tell. Targets are named by strangers, so they obey the same rules as downloads: every
address of the host is judged, the judged address is the one connected to, redirects are not
followed. Target addresses may hold tokens; logs name hosts only.

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
from serve_app.net.addresses import AddressPolicy, IpAddress, Location, parse_location
from serve_app.net.connections import (
    DEFAULT_NETWORK,
    Network,
    PinnedBackend,
    judged_addresses,
    request_target,
)
from serve_app.webhooks.events import DeliveryRules, Event, EventStore, TakenEvent

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # the scheme's own bounds
USER_AGENT = "lipsync-serve-webhooks/1"
IDLE_LOOK_S = 30.0  # another process may have put something into the file


class _Refused(Exception):
    """A try that failed. `retry_after_s`: the target's own wish; `final`: it wants no more."""

    def __init__(
        self, reason: str, *, retry_after_s: float | None = None, final: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.final = final


class WebhookSender:
    """Keeps events in `path` and delivers them.

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
        self._policy = policy
        self._network = network
        self._rules = rules or DeliveryRules()
        self._clock = clock
        self._store = EventStore(path, self._rules, clock)
        # One thread of its own: a file that another process holds up holds up nothing else.
        self._thread = ThreadPoolExecutor(1, "webhooks")
        self._wake = asyncio.Event()

    async def check_target(self, url: str) -> None:
        """Judge a target before anything is promised.

        Raises:
            SourceRefused: not http(s), malformed, or at an address that this worker does not reach
                for strangers. A name that does not resolve now is accepted: it may later.
        """
        location = parse_location(url)
        with suppress(OSError):
            await self._judged_addresses(location)

    async def enqueue(self, event: Event) -> bool:
        """Store an event; delivery follows. False: too many wait, and this one is dropped.

        Dropping is logged, and the job's state stays readable over the API.
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
        """Deliver what is due, a few at a time, until cancelled."""
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

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(*args, **kwargs))

    async def _wait_for_due(self) -> None:
        due = await self._in_thread(self._store.next_due)
        wait_s = IDLE_LOOK_S if due is None else min(IDLE_LOOK_S, due - self._clock())
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._wake.wait()

    async def _deliver_in_slot(self, taken: TakenEvent, slots: asyncio.Semaphore) -> None:
        try:
            await self._deliver_or_count(taken)
        except Exception:
            # The boundary of the delivery loop; the lease lets the event be tried again.
            logger.exception("webhook not settled", extra={"event_id": taken.id})
        finally:
            slots.release()

    async def _deliver_or_count(self, taken: TakenEvent) -> None:
        """Make one try. Whatever it raises is a failed try like any other."""
        if taken.tries > len(self._rules.pauses_s) + 1:
            # Earlier tries ended with their process, or could not be settled.
            await self._give_up(taken, "its tries were interrupted again and again")
            return
        try:
            await self._deliver(taken)
        except Exception as exc:
            logger.exception("webhook failed", extra={"event_id": taken.id})
            await self._failed(taken, _Refused(f"failed unexpectedly ({type(exc).__name__})"))

    async def _deliver(self, taken: TakenEvent) -> None:
        """Make one try and settle what becomes of the event."""
        try:
            location = parse_location(taken.url)
            async with asyncio.timeout(self._rules.timeout_s):
                await self._post(taken, location)
        except SourceRefused as exc:
            await self._give_up(taken, exc.message)
        except TimeoutError:
            await self._failed(taken, _Refused("no answer in time"))
        except _Refused as refused:
            await self._failed(taken, refused)
        else:
            await self._in_thread(self._store.remove, taken.id)
            logger.info("webhook delivered", extra={"event_id": taken.id, "host": location.host})

    async def _failed(self, taken: TakenEvent, refused: _Refused) -> None:
        pauses = self._rules.pauses_s
        if refused.final or taken.tries > len(pauses):
            await self._give_up(taken, refused.reason)
            return
        pause_s = pauses[taken.tries - 1] * random.uniform(0.8, 1.2)
        if refused.retry_after_s is not None:
            pause_s = max(pause_s, min(refused.retry_after_s, self._rules.max_retry_after_s))
        due = self._clock() + pause_s
        if due > taken.created + self._rules.max_age_s:
            await self._give_up(taken, refused.reason)
            return
        await self._in_thread(self._store.postpone, taken.id, due)
        self._wake.set()
        logger.info("webhook will be tried again", extra=_facts(taken, refused.reason))

    async def _give_up(self, taken: TakenEvent, reason: str) -> None:
        logger.warning("webhook given up", extra=_facts(taken, reason))
        await self._in_thread(self._store.remove, taken.id)

    async def _post(self, taken: TakenEvent, location: Location) -> None:
        """Send one signed request.

        Raises:
            SourceRefused: the target may not be connected to.
            _Refused: it did not take the event.
        """
        try:
            addresses = await self._judged_addresses(location)
        except OSError as exc:
            raise _Refused("the host name cannot be resolved") from exc
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._network.tls_context() if location.scheme == "https" else None,
            max_connections=1,
            network_backend=PinnedBackend(addresses),
        )
        headers = {"Host": location.authority, **self._headers(taken)}
        content = taken.body.encode()
        try:
            async with (
                pool,
                pool.stream(
                    "POST", request_target(location), headers=list(headers.items()), content=content
                ) as response,
            ):
                _judge(response)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as exc:
            raise _Refused(f"the connection failed ({type(exc).__name__})") from exc

    def _headers(self, taken: TakenEvent) -> dict[str, str]:
        # Signed anew for each try: receivers refuse old timestamps.
        sent = datetime.fromtimestamp(int(self._clock()), UTC)
        return {
            "Content-Type": "application/json",
            "Content-Length": str(len(taken.body.encode())),
            "User-Agent": USER_AGENT,
            "webhook-id": taken.id,
            "webhook-timestamp": str(int(sent.timestamp())),
            "webhook-signature": self._signer.sign(taken.id, sent, taken.body),
        }

    async def _judged_addresses(self, location: Location) -> list[IpAddress]:
        return await judged_addresses(location, self._policy, self._network, self._rules.timeout_s)


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


def _judge(response: httpcore.Response) -> None:
    """Raise unless the answer accepts the event. The answer's body is of no interest."""
    if 200 <= response.status < 300:
        return
    reason = f"answered {response.status}"
    # The scheme: 410 means that the target wants nothing any more.
    raise _Refused(reason, retry_after_s=_retry_after_s(response), final=response.status == 410)


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
