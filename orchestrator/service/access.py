"""Who may call: the shared keys of the environment, and the stored keys of clients and workers.

Keys are compared in constant time. Of stored keys only scrypt digests exist, and checking one takes
some 50 ms, so a key that was right is remembered, as a digest. Its row is read again every
`REMEMBER_S`; a key that is revoked is therefore refused after that time at the latest.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import SecretStr
from starlette.requests import Request

from orchestrator.service.errors import Rejected
from orchestrator.service.rate_limits import RateLimits
from orchestrator.service.settings import Settings
from orchestrator.store import keys
from orchestrator.store.values import StoredKey

REMEMBER_S = 10.0
MAX_REMEMBERED = 10_000
GUESSES_PER_MINUTE = 20  # wrong secrets for one key, from one address

ADMIN = "admin"

FindKey = Callable[[str], Awaitable[StoredKey | None]]
IsRight = Callable[[str, StoredKey], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class ClientCaller:
    """A caller of the job API. `sees` is whose jobs it may see; None stands for all."""

    name: str
    sees: str | None


@dataclass(frozen=True, slots=True)
class WorkerCaller:
    """A worker. `only_id` is the one identity that its token is for; None stands for any."""

    only_id: str | None

    def require(self, worker_id: str) -> None:
        """Refuse another identity than the token's.

        Raises:
            Rejected: 403.
        """
        if self.only_id not in (None, worker_id):
            raise Rejected(403, "key_wrong", "This token belongs to another worker.")


class Access:
    """Decides about every request.

    Args:
        find_key: reads a stored key.
        is_right: checks a stored key, which takes a while, in a thread.
    """

    def __init__(
        self,
        settings: Settings,
        find_key: FindKey,
        is_right: IsRight,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._internal = _secret(settings.internal_api_key)
        self._admin = _secret(settings.admin_api_key)
        self._find_key, self._is_right = find_key, is_right
        self._clock = clock
        self._remembered: OrderedDict[bytes, tuple[StoredKey, float]] = OrderedDict()
        self._guesses = RateLimits(GUESSES_PER_MINUTE, clock)
        self._requests = RateLimits(settings.requests_per_minute, clock)

    async def worker(self, request: Request) -> WorkerCaller:
        """Admit a worker.

        Raises:
            Rejected: 401 without a key, 403 with a wrong one, 429 after too many wrong ones.
        """
        presented = _presented(request)
        if _equal(presented, self._internal):
            return WorkerCaller(None)
        stored = await self._stored(request, presented)
        if stored.kind != "worker":
            raise Rejected(403, "key_wrong", "This is not the key of a worker.")
        return WorkerCaller(stored.name)

    async def client(self, request: Request) -> ClientCaller:
        """Admit a client or the operator, and count a client's request.

        Raises:
            Rejected: as `worker`; 429 also after too many requests.
        """
        presented = _presented(request)
        if _equal(presented, self._admin):
            return ClientCaller(ADMIN, None)
        if _equal(presented, self._internal):
            raise Rejected(403, "key_of_another_kind", "The key of workers cannot submit jobs.")
        stored = await self._stored(request, presented)
        if stored.kind != "client":
            raise Rejected(403, "key_of_another_kind", "The token of a worker cannot submit jobs.")
        wait_s = self._requests.wait_s(stored.id)
        if wait_s:
            text = "This key has sent too many requests."
            raise Rejected(429, "too_many_requests", text, retry_after_s=wait_s)
        return ClientCaller(stored.name, stored.name)

    async def admin(self, request: Request) -> None:
        """Admit the operator only.

        Raises:
            Rejected: as `client`.
        """
        if (await self.client(request)).sees is not None:
            raise Rejected(403, "key_of_another_kind", "This route needs the operator's key.")

    def is_admin_key(self, presented: str) -> bool:
        """Return whether this is the operator's key."""
        return _equal(presented, self._admin)

    async def _stored(self, request: Request, presented: str) -> StoredKey:
        known = hashlib.sha256(presented.encode("utf-8", "replace")).digest()
        remembered = self._remembered.get(known)
        if remembered is not None and remembered[1] > self._clock():
            return remembered[0]
        key_id = keys.id_of(presented)
        is_possible = len(presented) <= keys.MAX_KEY_CHARS and key_id.isalnum() and key_id.isascii()
        stored = await self._find_key(key_id) if is_possible else None
        is_known = remembered is not None and stored == remembered[0]
        if stored is None or not (is_known or await self._check(request, presented, stored)):
            self._remembered.pop(known, None)
            raise Rejected(403, "key_wrong", "The key is wrong, or has been revoked.")
        self._remembered[known] = (stored, self._clock() + REMEMBER_S)
        self._remembered.move_to_end(known)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return stored

    async def _check(self, request: Request, presented: str, stored: StoredKey) -> bool:
        address = request.client.host if request.client else ""
        guesser = f"{address} {stored.id}"
        wait_s = self._guesses.seconds_left(guesser)
        if wait_s:
            text = "Too many wrong secrets were tried for this key."
            raise Rejected(429, "too_many_guesses", text, retry_after_s=wait_s)
        if await self._is_right(presented, stored):
            return True
        self._guesses.wait_s(guesser)
        return False


def _presented(request: Request) -> str:
    bearer = request.headers.get("Authorization", "")
    scheme, _, token = bearer.partition(" ")
    key = request.headers.get("X-Internal-API-Key") or (
        token.strip() if scheme.lower() == "bearer" else ""
    )
    if not key:
        raise Rejected(401, "key_missing", "This route needs a key.")
    return key


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()


def _equal(presented: str, secret: str | None) -> bool:
    if secret is None:
        return False
    return hmac.compare_digest(presented.encode("utf-8", "replace"), secret.encode())
