"""Connections to judged addresses: resolve once, judge, connect by number.

Nothing between the judgement and the connection resolves the name again; the Host header, SNI and
the certificate check use the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import certifi
import httpcore

from serve_app.net.addresses import AddressPolicy, IpAddress, Location

MAX_ADDRESSES = 4  # of one host that are tried in turn
# A resolver that does not answer keeps its thread for half a minute, however soon the asker gives
# up. The names are strangers', so these are not the threads that files are written with.
_RESOLVERS = ThreadPoolExecutor(32, "resolver")

Resolve = Callable[[str, int], Awaitable[list[IpAddress]]]


async def resolve_host(host: str, port: int) -> list[IpAddress]:
    """Ask the system's resolver; addresses in its order of preference, without repeats.

    Raises:
        OSError: the name has no address, or no resolver answers.
    """
    loop = asyncio.get_running_loop()
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(_RESOLVERS, ask)
    # A scoped address (fe80::1%eth0) keeps its zone and is refused for it later.
    return [ipaddress.ip_address(text) for text in dict.fromkeys(str(f[4][0]) for f in found)]


@dataclass(frozen=True, slots=True)
class Network:
    """How the outside is reached; another one lets tests play the DNS and the certificates' issuer.

    `ca_file`: trusted certificates (PEM) instead of certifi's. `curl`: program of the fallback;
    None, or a name that is not installed, turns it off.
    """

    resolve: Resolve = resolve_host
    ca_file: Path | None = None
    curl: str | None = "curl"

    @property
    def certificates(self) -> Path:
        """The file of trusted certificates."""
        return self.ca_file or Path(certifi.where())

    def tls_context(self) -> ssl.SSLContext:
        """Return a context that checks certificate and host name."""
        return ssl.create_default_context(cafile=self.certificates)


DEFAULT_NETWORK = Network()


async def judged_addresses(
    location: Location, policy: AddressPolicy | None, network: Network, timeout_s: float
) -> list[IpAddress]:
    """Resolve the host of `location` and have every address judged; without `policy`, by nobody.

    Returns at least one and at most `MAX_ADDRESSES` addresses.

    Raises:
        SourceRefused: the policy refuses one of them.
        OSError: the name does not resolve in time.
    """
    if location.ip is not None:
        addresses = [location.ip]
    else:
        addresses = await _resolve(location, network, timeout_s)
    if policy is not None:
        policy.check(location, addresses)
    return addresses[:MAX_ADDRESSES]


async def _resolve(location: Location, network: Network, timeout_s: float) -> list[IpAddress]:
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await network.resolve(location.host, location.port)
    except (TimeoutError, UnicodeError) as exc:  # UnicodeError: a name that DNS cannot carry
        raise OSError("the name does not resolve") from exc
    if not addresses:
        raise OSError("the name has no address")
    return addresses


def request_target(location: Location) -> httpcore.URL:
    """Return the URL of a request: the name, never the number, so that TLS checks the name."""
    return httpcore.URL(
        scheme=location.scheme, host=location.host, port=location.port, target=location.target
    )


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to judged addresses only, whatever name it is asked for."""

    def __init__(self, addresses: Sequence[IpAddress]) -> None:
        self._addresses = addresses
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address in self._addresses:
            try:
                return await self._inner.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("local sockets are never used")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)
