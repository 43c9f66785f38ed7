"""Signed links to finished videos of the local store.

The local store records the path of a video under this worker (`/files/name.mp4`). Each answer makes
a link of that path, so that the link begins with the base URL that its reader uses and is fresh.
URLs of other stores (B2, a signed URL) pass unchanged.

A link carries `expires` (Unix seconds) and `signature`, an HMAC-SHA256 over what it opens
(signed_paths.py) and the expiry.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

from starlette.types import Scope

from musetalk_pipeline.files import create_private, part_name, sync
from serve_app.config.environment import Environment
from serve_app.config.settings import AppArgs
from serve_app.contract.outcomes import Outcome, Success
from serve_app.gate.callers import header_values
from serve_app.gate.signed_paths import (
    FILES_PREFIX,
    STREAM_PLAYLIST,
    file_subject,
    stream_subject,
)

SECRET_NAME, SECRET_BYTES = "link_secret", 32
# Expiry is rounded up, so that a job that is requested repeatedly keeps the same link.
ROUNDED_S = 3600
LOOPBACK_PEER = "127.0.0.1"

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]{1,64}){1,8}/?")
_EXPIRES = re.compile(r"\d{1,12}")


# Whether the attempt of a job with that number has a stream.
HasStream = Callable[[str, int], bool]


def no_stream(job_id: str, number: int) -> bool:
    """Return False: nothing can be watched."""
    return False


class LinkState(StrEnum):
    """The state of a link's signature."""

    ABSENT = "absent"
    WRONG = "wrong"
    EXPIRED = "expired"
    VALID = "valid"


@dataclass(frozen=True, slots=True)
class LinkSigner:
    """Signs links and checks them; `lifetime_s` is how long a new one is valid, in seconds."""

    secret: bytes = field(repr=False)
    lifetime_s: float
    clock: Callable[[], float] = time.time

    def query(self, subject: str) -> str:
        """Return the query string that opens `subject` (signed_paths.py)."""
        expires = math.ceil((self.clock() + self.lifetime_s) / ROUNDED_S) * ROUNDED_S
        return f"expires={expires}&signature={self._signature(subject, str(expires))}"

    def check(self, subject: str, query_string: bytes) -> LinkState:
        """Check the query string of a request for `subject`."""
        query = parse_qs(query_string.decode("latin-1"), keep_blank_values=True)
        given, expires = query.get("signature", []), query.get("expires", [])
        if not given:
            return LinkState.ABSENT
        if len(given) != 1 or len(expires) != 1 or not _EXPIRES.fullmatch(expires[0]):
            return LinkState.WRONG
        right = self._signature(subject, expires[0])
        if not hmac.compare_digest(given[0].encode("utf-8", "replace"), right.encode()):
            return LinkState.WRONG
        return LinkState.VALID if self.clock() < int(expires[0]) else LinkState.EXPIRED

    def _signature(self, subject: str, expires: str) -> str:
        signed = f"{subject}\n{expires}".encode("utf-8", "surrogatepass")
        digest = hmac.new(self.secret, signed, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def read_secret(path: Path) -> bytes:
    """Return the secret in `path`, created once (0600), so that links survive a restart."""
    if not _holds_secret(path):
        path.unlink(missing_ok=True)  # a crash may have cut it short
        part = part_name(path)
        try:
            with create_private(part) as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
                sync(file)
            # Replicas may start at the same time, so the first one's secret stays.
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
    return path.read_bytes()


def _holds_secret(path: Path) -> bool:
    try:
        return path.stat().st_size == SECRET_BYTES
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Bases:
    """Decides which base URL links begin with.

    It is `public_base_url` if that is set, else the one that the request used, else `bound`.
    Forwarding headers count only from `trusted_proxies` (addresses and networks).
    """

    bound: str
    public_base_url: str | None = None
    trusted_proxies: Sequence[str] = ()

    def of(self, scope: Scope | None = None) -> str:
        """Return the base URL for the answer to a request, or without one for a notification."""
        if self.public_base_url is not None:
            return self.public_base_url.rstrip("/")
        if scope is None:
            return self.bound
        is_trusted = self._is_trusted(scope)
        host = _header(scope, b"host")
        scheme, prefix = _scheme(scope, is_trusted), str(scope.get("root_path", "")).rstrip("/")
        if is_trusted:
            host = _header(scope, b"x-forwarded-host") or host
            prefix = _forwarded_prefix(scope) or prefix
        if not _HOST.fullmatch(host):
            return self.bound
        return f"{scheme}://{host}{prefix}"

    def _is_trusted(self, scope: Scope) -> bool:
        client = scope.get("client")
        if client is None or not self.trusted_proxies:
            return False
        host, port = client
        # If Serve's proxy does not run the gate, uvicorn replaces a loopback peer by the address in
        # X-Forwarded-For, with port 0.
        peer = LOOPBACK_PEER if port == 0 else host
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        networks = [ipaddress.ip_network(text, strict=False) for text in self.trusted_proxies]
        return any(address in network for network in networks)


def in_address(host: str) -> str:
    """Return a host as URLs write it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def _scheme(scope: Scope, is_trusted: bool) -> str:
    forwarded = _header(scope, b"x-forwarded-proto").lower()
    if is_trusted and forwarded in ("http", "https"):
        return forwarded
    # Without the gate, uvicorn accepts that header from a loopback peer too, so the scope's scheme
    # may come from the client.
    return "http" if forwarded else str(scope.get("scheme", "http"))


def _forwarded_prefix(scope: Scope) -> str:
    prefix = _header(scope, b"x-forwarded-prefix")
    return prefix.rstrip("/") if _PREFIX.fullmatch(prefix) else ""


def _header(scope: Scope, name: bytes) -> str:
    """Return a header's last value, which is the one that the nearest proxy added."""
    values = header_values(scope, name)
    return values[-1].decode("latin-1").rpartition(",")[2].strip() if values else ""


@dataclass(frozen=True, slots=True)
class Links:
    """Makes links that begin with one base URL.

    `has_stream`: whether something of an attempt, given by its number, can be played.
    """

    base: str
    signer: LinkSigner
    has_stream: HasStream = no_stream

    def link(self, location: str) -> str:
        """Return the link to a stored location; a URL of another store stays as it is."""
        if not location.startswith(FILES_PREFIX):
            return location
        key = unquote(location.removeprefix(FILES_PREFIX))
        return f"{self.base}{location}?{self.signer.query(file_subject(key))}"

    def stream(self, job_id: str, number: int) -> str | None:
        """Return the link to the stream of an attempt at a job; None if nothing can be played."""
        if not self.has_stream(job_id, number):
            return None
        query = f"number={number}&{self.signer.query(stream_subject(job_id))}"
        return f"{self.base}/v1/avatar/jobs/{quote(job_id, safe='')}/{STREAM_PLAYLIST}?{query}"

    def publish(self, outcome: Outcome) -> Outcome:
        """Return the outcome with a link in the place of the stored location."""
        if not isinstance(outcome, Success):
            return outcome
        return replace(outcome, output_url=self.link(outcome.output_url))


@dataclass(frozen=True, slots=True)
class LinkMaker:
    """Makes the links of one ingress."""

    bases: Bases
    signer: LinkSigner
    has_stream: HasStream = no_stream

    @classmethod
    def of(
        cls, args: AppArgs, env: Environment, state: Path, has_stream: HasStream = no_stream
    ) -> LinkMaker:
        """Return what the configuration sets; the secret is kept in the folder `state`."""
        bound = f"http://{in_address(env.host)}:{env.port}"
        bases = Bases(bound, args.public_base_url, tuple(args.links.trusted_proxies))
        secret = read_secret(state / SECRET_NAME)
        return cls(bases, LinkSigner(secret, args.links.lifetime_days * 86400), has_stream)

    def for_request(self, scope: Scope) -> Links:
        """Return the links for the answer to a request."""
        return Links(self.bases.of(scope), self.signer, self.has_stream)

    def for_notifications(self) -> Links:
        """Return the links for webhooks and reports, which answer no request."""
        return Links(self.bases.of(), self.signer, self.has_stream)
