"""The door: who may call (callers.py), links' signatures, and a limit on guesses.

It looks at the head of a request only, so that gate.py can ask before anything is read of its body.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Scope

from serve_app.gate.callers import FILES_PREFIX, CallerRules, Refusal, route_path
from serve_app.gate.links import LinkSigner, LinkState

logger = logging.getLogger(__name__)

GUESSED_WRONG = frozenset({"key_wrong", "token_wrong", "link_wrong"})


@dataclass(slots=True)
class _Count:
    """Wrong guesses that a peer may still make, as of a moment of the clock."""

    left: float
    at: float


class Guesses:
    """Counts each peer's wrong keys and links: `burst` at a time, one more every `pause_s`.

    The table holds `peers` at most; the one that was quiet longest is forgotten first. An IPv6 peer
    counts as its /64, which is what one household or machine has to itself.
    """

    def __init__(
        self,
        burst: int = 20,
        pause_s: float = 3.0,
        peers: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst, self._pause_s, self._peers, self._clock = burst, pause_s, peers, clock
        self._counts: OrderedDict[str, _Count] = OrderedDict()

    def note(self, peer: str) -> float:
        """Count a wrong guess; 0, or the seconds to wait if there were too many."""
        now, name = self._clock(), _network_of(peer)
        count = self._counts.pop(name, _Count(self._burst, now))
        count.left = min(self._burst, count.left + (now - count.at) / self._pause_s)
        count.at = now
        self._counts[name] = count
        while len(self._counts) > self._peers:
            self._counts.popitem(last=False)
        if count.left < 1:
            return self._pause_s * (1 - count.left)
        count.left -= 1
        return 0.0


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


class Doorkeeper:
    """Decides about each request of one ingress or, without a signer, of one of Serve's proxies:
    links are passed on there, and the ingress checks them.
    """

    def __init__(
        self, rules: CallerRules, signer: LinkSigner | None, guesses: Guesses | None = None
    ) -> None:
        self._rules, self._signer = rules, signer
        self._guesses = guesses or Guesses()

    def judge(self, scope: Scope) -> Refusal | None:
        """Return why a request is refused; None if it may go on.

        A right key or link always goes on, however many wrong ones came from the same address:
        programs on one machine, or behind one proxy, do not lock each other out. So the limit tells
        searches apart from mistakes, and does not end them: a key has to be long enough for that.
        """
        refusal = self._judge(scope)
        if refusal is None or refusal.code not in GUESSED_WRONG:
            return refusal
        client = scope.get("client")
        wait_s = self._guesses.note(client[0] if client else "?")
        return refusal if wait_s == 0 else _too_many(wait_s)

    def _judge(self, scope: Scope) -> Refusal | None:
        if scope["type"] != "http" or self._signer is None:
            return self._rules.judge(scope)
        path = route_path(scope)
        if not path.startswith(FILES_PREFIX):
            return self._rules.judge(scope)
        state = self._signer.check(path.removeprefix(FILES_PREFIX), scope.get("query_string", b""))
        if state is LinkState.VALID:
            return None
        if state is LinkState.ABSENT:
            return self._rules.judge_keys(scope)
        if self._rules.has_right_key(scope):
            return None
        return _LINK_EXPIRED if state is LinkState.EXPIRED else _LINK_WRONG


_LINK_WRONG = Refusal(
    403,
    "link_wrong",
    "The signature of this link is not right.",
    "Use the whole link as the answer gave it, with everything behind its question mark.",
)
_LINK_EXPIRED = Refusal(
    403,
    "link_expired",
    "This link has expired.",
    "Ask for the job again (GET /v1/avatar/jobs/{id}): the answer has a new link.",
)


def _too_many(wait_s: float) -> Refusal:
    seconds = max(1, round(wait_s + 0.5))
    return Refusal(
        429,
        "too_many_guesses",
        "Too many wrong keys or links came from this address.",
        f"Wait {seconds} s, then send the right one.",
        {"Retry-After": str(seconds)},
    )
