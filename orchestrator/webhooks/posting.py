"""One signed request to a webhook's target, by the Standard Webhooks scheme.

Strangers choose the targets, so every address of the host is checked, the connection goes to a
checked address, and redirects are not followed.

Scheme: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpcore
from standardwebhooks import Webhook

from orchestrator.net.addresses import AddressPolicy, Location
from orchestrator.net.connections import DEFAULT_NETWORK, Network, PinnedClient
from orchestrator.webhooks.rules import DeliveryFailed

SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # the scheme's own bounds
USER_AGENT = "lipsync-serve-webhooks/1"


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


class Poster:
    """Sends events. `policy` decides which targets are allowed; `clock` is in Unix seconds."""

    def __init__(
        self,
        policy: AddressPolicy,
        timeout_s: float,
        *,
        network: Network = DEFAULT_NETWORK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._client = PinnedClient(network, policy, connect_s=timeout_s, stall_s=timeout_s)

    async def check(self, location: Location) -> None:
        """Return if a target may be connected to. A name that does not resolve now may, later.

        Raises:
            What the policy raises for a target that is not allowed.
        """
        try:
            await self._client.resolve(location)
        except OSError:
            return

    async def post(self, event_id: str, location: Location, body: str, key: bytes) -> int:
        """Send an event that is signed with `key`. Return the status of the answer, which is 2xx.

        Raises:
            DeliveryFailed: the target did not accept it.
            What the policy raises for a target that is not allowed.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(event_id, location, body, key)
        except TimeoutError as exc:
            raise DeliveryFailed("no answer in time") from exc

    async def _post(self, event_id: str, location: Location, body: str, key: bytes) -> int:
        try:
            addresses = await self._client.resolve(location)
        except OSError as exc:
            raise DeliveryFailed("the host name cannot be resolved") from exc
        headers, content = self._headers(event_id, body, key), body.encode()
        try:
            async with self._client.stream(
                "POST", location, addresses, headers=headers, content=content
            ) as response:
                _raise_unless_accepted(response)
                return response.status
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as exc:
            raise DeliveryFailed(f"the connection failed ({type(exc).__name__})") from exc

    def _headers(self, event_id: str, body: str, key: bytes) -> dict[str, str]:
        # Each try has a signature of its own, because receivers reject old timestamps.
        sent = datetime.fromtimestamp(int(self._clock()), UTC)
        return {
            "Content-Type": "application/json",
            "Content-Length": str(len(body.encode())),
            "User-Agent": USER_AGENT,
            "webhook-id": event_id,
            "webhook-timestamp": str(int(sent.timestamp())),
            "webhook-signature": Webhook(key).sign(event_id, sent, body),
        }


def _raise_unless_accepted(response: httpcore.Response) -> None:
    """Raise unless the response accepts the event. Its body is not read."""
    if 200 <= response.status < 300:
        return
    # By the scheme, 410 means that the target accepts no more events.
    raise DeliveryFailed(
        f"answered {response.status}",
        status=response.status,
        retry_after_s=_retry_after_s(response),
        final=response.status == 410,
    )


def _retry_after_s(response: httpcore.Response) -> float | None:
    for name, value in response.headers:
        if name.lower() == b"retry-after" and value.strip().isdigit():
            return float(value.strip()[:9])
    return None
