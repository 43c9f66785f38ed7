"""Access control: keys and tokens (callers.py), signed links, and a limit on wrong guesses.

Every check reads the headers and the URL of a request only, so that the gate can make it before it
reads any of the body.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Scope

from serve_app.gate.callers import CallerRules, route_path
from serve_app.gate.links import LinkSigner, LinkState
from serve_app.gate.rejections import Rejection
from serve_app.gate.signed_paths import subject_of

WRONG_GUESS_CODES = frozenset({"key_wrong", "token_wrong", "link_wrong"})


@dataclass(slots=True)
class _Bucket:
    """The wrong guesses that a peer may still make, as of a moment of the clock."""

    left: float
    at: float


class GuessLimiter:
    """Limits each peer's wrong keys and links: `burst` at once, then one more every `pause_s`.

    The table holds `peers` entries at most and drops the one that has been quiet the longest. An
    IPv6 peer counts as its /64, which is what one household or machine has to itself.
    """

    def __init__(
        self,
        burst: int = 20,
        pause_s: float = 3.0,
        peers: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst, self._pause_s, self._peers, self._clock = burst, pause_s, peers, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def count(self, peer: str) -> float:
        """Count a wrong guess. Return 0, or the seconds to wait if there were too many."""
        now, name = self._clock(), _network_of(peer)
        bucket = self._buckets.pop(name, _Bucket(self._burst, now))
        bucket.left = min(self._burst, bucket.left + (now - bucket.at) / self._pause_s)
        bucket.at = now
        self._buckets[name] = bucket
        while len(self._buckets) > self._peers:
            self._buckets.popitem(last=False)
        if bucket.left < 1:
            return self._pause_s * (1 - bucket.left)
        bucket.left -= 1
        return 0.0

    @property
    def n_peers(self) -> int:
        """Return how many peers are in the table."""
        return len(self._buckets)


def _network_of(peer: str) -> str:
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return "?"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class AccessControl:
    """Decides who may make a request.

    Without a `signer`, as in Serve's proxy, signed links pass and the ingress checks them.

    A correct key or link always passes, however many wrong ones came from the same address:
    programs on one machine, or behind one proxy, do not lock each other out. The limit therefore
    slows down a search and does not end it; a key has to be long enough to withstand that.
    """

    def __init__(
        self, rules: CallerRules, signer: LinkSigner | None, guesses: GuessLimiter | None = None
    ) -> None:
        self._rules, self._signer = rules, signer
        self._guesses = guesses or GuessLimiter()

    def check(self, scope: Scope) -> Rejection | None:
        """Return why a request is rejected, by its path; None if it may pass."""
        if scope["type"] == "http" and self._signer is not None:
            subject = subject_of(route_path(scope))
            if subject is not None:
                return self.check_link(scope, subject)
        return self._limited(self._rules.check(scope), scope)

    def key_of(self, scope: Scope) -> str | None:
        """Return the key that an admitted request came with, if any."""
        return self._rules.key_of(scope)

    def check_key(self, scope: Scope) -> Rejection | None:
        """Return why a request for a route that needs the callers' key is rejected."""
        return self._limited(self._rules.check_key(scope), scope)

    def check_token(self, scope: Scope) -> Rejection | None:
        """Return why a request for a route that needs the worker's token is rejected."""
        return self._limited(self._rules.check_token(scope), scope)

    def check_ping(self, scope: Scope) -> Rejection | None:
        """Return why a request for the ping, which may be public, is rejected."""
        return None if self._rules.ping_is_public else self.check_token(scope)

    def check_link(self, scope: Scope, subject: str) -> Rejection | None:
        """Return why a request that needs a valid link or the key is rejected. `subject`: what the
        link signs (signed_paths.py).
        """
        return self._limited(self._check_link(scope, subject), scope)

    def _check_link(self, scope: Scope, subject: str) -> Rejection | None:
        if self._signer is None:
            return self._rules.check_key(scope)
        state = self._signer.check(subject, scope.get("query_string", b""))
        if state is LinkState.VALID:
            return None
        if state is LinkState.ABSENT:
            return self._rules.check_key(scope)
        if self._rules.has_right_key(scope):
            return None
        return _LINK_EXPIRED if state is LinkState.EXPIRED else _LINK_WRONG

    def _limited(self, rejection: Rejection | None, scope: Scope) -> Rejection | None:
        """Count a wrong guess, and return another rejection if there were too many."""
        if rejection is None or rejection.code not in WRONG_GUESS_CODES:
            return rejection
        client = scope.get("client")
        wait_s = self._guesses.count(client[0] if client else "?")
        return rejection if wait_s == 0 else _too_many(wait_s)


_LINK_WRONG = Rejection(
    403,
    "link_wrong",
    "The signature of this link is invalid.",
    "Use the whole link as the answer gave it, including everything after the question mark.",
)
_LINK_EXPIRED = Rejection(
    403,
    "link_expired",
    "This link has expired.",
    "Request the job again (GET /v1/avatar/jobs/{id}): the answer has a new link.",
)


def _too_many(wait_s: float) -> Rejection:
    seconds = max(1, round(wait_s + 0.5))
    return Rejection(
        429,
        "too_many_guesses",
        "Too many wrong keys or links came from this address.",
        f"Wait {seconds} s, then send the correct one.",
        {"Retry-After": str(seconds)},
    )
