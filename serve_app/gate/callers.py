"""Who may call this worker: the rule of docs/protocol.md §1, decided from headers and URL alone.

`CallerRules.check` is pure and reads neither a body nor a clock, so it can run wherever a request
first arrives:

1. `/hc`, `/health`, the public ping, and the page with its files are open to everybody.
2. `/v1/ping` and `/v1/preflight` need `WORKER_TOKEN`; `INGRESS_API_KEY` opens them too.
3. `/files/…` and streams with a signature in their link pass: access_control.py checks it when
   they are served.
4. Everything else needs `INGRESS_API_KEY` if that is set. Otherwise callers on loopback need
   nothing, and callers from elsewhere need `INTERNAL_API_KEY`, or `ALLOW_ANONYMOUS=true` if no key
   is set.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from starlette.types import Scope

from serve_app.config.environment import Environment, secret_text
from serve_app.gate.rejections import Rejection
from serve_app.gate.signed_paths import subject_of

OPEN_PATHS = frozenset({"/hc", "/health"})
TOKEN_PATHS = frozenset({"/v1/ping", "/v1/preflight"})
PAGE_PATH, PAGE_PREFIX = "/", "/studio/"  # serve_app/studio
FORWARDING_HEADERS = frozenset({b"forwarded", b"via", b"x-real-ip"})
FORWARDING_PREFIX = b"x-forwarded-"
# More keys than that in one request are a search, not a caller.
_MAX_KEYS_READ = 4


@dataclass(frozen=True, slots=True)
class CallerRules:
    """The keys that open this worker, and whether it is open without any. `has_page`: whether it
    has a page, which a browser loads before it can send a key.
    """

    ingress_api_key: str | None = field(default=None, repr=False)
    internal_api_key: str | None = field(default=None, repr=False)
    worker_token: str | None = field(default=None, repr=False)
    ping_is_public: bool = False
    allow_anonymous: bool = False
    has_page: bool = False

    @classmethod
    def of(cls, environment: Environment, *, has_page: bool = False) -> CallerRules:
        """Return the rules that the environment sets."""
        return cls(
            ingress_api_key=secret_text(environment.ingress_api_key),
            internal_api_key=secret_text(environment.internal_api_key),
            worker_token=secret_text(environment.worker_token),
            ping_is_public=environment.ping_is_public,
            allow_anonymous=environment.allow_anonymous,
            has_page=has_page,
        )

    def check(self, scope: Scope) -> Rejection | None:
        """Return why the request of this ASGI scope is rejected, by its path; None if it passes."""
        if scope["type"] not in ("http", "websocket"):
            return None
        path = route_path(scope)
        if path in OPEN_PATHS or (path == "/v1/ping" and self.ping_is_public):
            return None
        if self.has_page and _is_page(scope, path):
            return None
        if path in TOKEN_PATHS:
            return self.check_token(scope)
        return None if has_signature(scope) else self.check_key(scope)

    def check_key(self, scope: Scope) -> Rejection | None:
        """Return why a request is rejected if its route needs the callers' key."""
        if self.ingress_api_key is not None:
            return _check_key(scope, self.ingress_api_key, "INGRESS_API_KEY")
        if is_from_this_machine(scope):
            return None
        if self.internal_api_key is not None:
            return _check_key(scope, self.internal_api_key, "INTERNAL_API_KEY")
        return None if self.allow_anonymous else _LOCAL_ONLY

    def check_token(self, scope: Scope) -> Rejection | None:
        """Return why a request is rejected if its route needs the worker's token."""
        tokens = list(_bearer_tokens(scope))
        if _is_among(self.worker_token, tokens):
            return None
        if self.ingress_api_key is not None and _is_among(self.ingress_api_key, _keys(scope)):
            return None
        if not tokens:
            return _TOKEN_MISSING
        return _TOKEN_WRONG if self.worker_token is not None else _NO_TOKEN

    def in_words(self) -> str:
        """Return a sentence for the log on who may call."""
        if self.ingress_api_key is not None:
            return "Callers need INGRESS_API_KEY."
        if self.internal_api_key is not None:
            return "Callers on this machine need no key, all others need INTERNAL_API_KEY."
        if self.allow_anonymous:
            return "Everybody may call without a key, because ALLOW_ANONYMOUS is set."
        return (
            "Only this machine may call, because there is no key. Set INGRESS_API_KEY, or "
            "ALLOW_ANONYMOUS=true, to let others in."
        )

    def has_right_key(self, scope: Scope) -> bool:
        """Whether the request carries a key that opens this worker, whatever else it carries."""
        given = list(_keys(scope))
        expected = self.ingress_api_key or self.internal_api_key
        return _is_among(expected, given)

    def key_of(self, scope: Scope) -> str | None:
        """Return the key that an admitted request came with; None if it came without one."""
        if self.has_right_key(scope):
            return self.ingress_api_key or self.internal_api_key
        return next(_keys(scope), None)


_LOCAL_ONLY = Rejection(
    403,
    "local_callers_only",
    "This worker has no key for its callers, so only programs on its own machine may call it.",
    "Set INGRESS_API_KEY where the worker runs and send it in X-Internal-API-Key, or set "
    "ALLOW_ANONYMOUS=true to let everybody in.",
)
_TOKEN_MISSING = Rejection(
    401,
    "token_missing",
    "This route needs the worker's token.",
    "Send Authorization: Bearer with the value that WORKER_TOKEN has where the worker runs.",
    {"WWW-Authenticate": "Bearer"},
)
_TOKEN_WRONG = Rejection(
    403,
    "token_wrong",
    "The token in Authorization: Bearer is invalid.",
    "Compare it with WORKER_TOKEN where the worker runs.",
)
_NO_TOKEN = Rejection(
    403,
    "token_wrong",
    "WORKER_TOKEN is not set on this worker, so no token is accepted.",
    "Set WORKER_TOKEN where the worker runs.",
)


def _check_key(scope: Scope, expected: str, setting: str) -> Rejection | None:
    """Check one key, in either of the two headers that may carry it."""
    given = list(_keys(scope))
    if not given:
        return Rejection(
            401,
            "key_missing",
            "This route needs a key: send X-Internal-API-Key.",
            f"Send the value that {setting} has where the worker runs, in X-Internal-API-Key or "
            "as Authorization: Bearer.",
            {"WWW-Authenticate": "Bearer"},
        )
    if _is_among(expected, given):
        return None
    return Rejection(
        403,
        "key_wrong",
        "The key in X-Internal-API-Key or Authorization: Bearer is invalid.",
        f"Compare it with {setting} where the worker runs.",
    )


def _is_page(scope: Scope, path: str) -> bool:
    is_read = scope.get("method") in ("GET", "HEAD")
    return is_read and (path == PAGE_PATH or path.startswith(PAGE_PREFIX))


def has_signature(scope: Scope) -> bool:
    """Whether a link may open what the request is for, and carries a signature, right or wrong."""
    if subject_of(route_path(scope)) is None:
        return False
    query = scope.get("query_string", b"").decode("latin-1")
    return "signature" in parse_qs(query, keep_blank_values=True)


def route_path(scope: Scope) -> str:
    """Return the path without the prefix that the application is under, as its routes have it."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def is_loopback(address: str | None) -> bool:
    """Whether a peer's address is one of this machine's own loopback addresses."""
    try:
        peer = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        return peer.ipv4_mapped.is_loopback
    return peer.is_loopback


def is_from_this_machine(scope: Scope) -> bool:
    """Whether the caller itself, not only the last hop to us, is a program on this machine.

    The peer's address decides. A forwarding header means that the peer acts for another client, and
    a browser acts for the site whose page it shows.
    """
    client = scope.get("client")
    if client is None or not is_loopback(client[0]):
        return False
    return not _is_forwarded(scope) and not _is_of_another_site(scope)


def _is_forwarded(scope: Scope) -> bool:
    return any(
        name in FORWARDING_HEADERS or name.startswith(FORWARDING_PREFIX)
        for name, _ in _headers(scope)
    )


def _is_of_another_site(scope: Scope) -> bool:
    """Whether a browser sent this for a page of another machine.

    An `Origin` that equals `Host` proves nothing: a name of another site may resolve to loopback.
    For the same reason a browser has to come by an address or a local name, since it sends no
    `Origin` with what a page merely reads. A link that a user follows to here is that user's call,
    and no other site can read its answer.
    """
    origins = [value.decode("latin-1") for value in header_values(scope, b"origin")]
    if any(not _is_local_origin(origin) for origin in origins):
        return True
    if _is_a_browsers(scope):
        hosts = [value.decode("latin-1") for value in header_values(scope, b"host")]
        if any(not _is_local_origin(f"http://{host}") for host in hosts):
            return True
    is_visit = scope.get("method") == "GET" and b"navigate" in header_values(
        scope, b"sec-fetch-mode"
    )
    return b"cross-site" in header_values(scope, b"sec-fetch-site") and not is_visit


def _is_a_browsers(scope: Scope) -> bool:
    """Whether a browser sent this. Some let a page choose its `User-Agent`, but none lets it leave
    `Accept-Language` out, which programs hardly ever send.
    """
    agents = header_values(scope, b"user-agent")
    is_named = any(agent.startswith(b"Mozilla/") for agent in agents)
    return is_named or bool(header_values(scope, b"accept-language"))


def _is_local_origin(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or host.endswith(".localhost") or is_loopback(host)


def _is_among(expected: str | None, given: Iterator[str] | list[str]) -> bool:
    """Compare every given key with the expected one, in a time that reveals nothing about it."""
    if expected is None:
        return False
    right = expected.encode("utf-8", "surrogatepass")
    results = [hmac.compare_digest(key.encode("utf-8"), right) for key in given]
    return any(results)


def _keys(scope: Scope) -> Iterator[str]:
    for value in header_values(scope, b"x-internal-api-key"):
        yield _text(value)
    yield from _bearer_tokens(scope)


def _bearer_tokens(scope: Scope) -> Iterator[str]:
    for value in header_values(scope, b"authorization"):
        scheme, _, token = _text(value).partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            yield token.strip()


def _text(value: bytes) -> str:
    """Return a header's text: UTF-8 if it is, since keys in the environment are, else Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Return the values of a header (its name in lower case), but only the first few."""
    return [value for each, value in _headers(scope) if each == name][:_MAX_KEYS_READ]


def _headers(scope: Scope) -> Iterator[tuple[bytes, bytes]]:
    for name, value in scope.get("headers", ()):
        yield bytes(name).lower(), bytes(value)
