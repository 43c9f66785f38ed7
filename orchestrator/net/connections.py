"""HTTP requests to checked addresses: resolve once, check, connect by number.

Nothing resolves the name again between the check and the connection. The Host header, SNI and the
certificate check use the name. Downloads, uploads by PUT and webhooks all go through
`PinnedClient`, which raises what its policy raises; the curl fallback of downloads is pinned to
the same addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import certifi
import httpcore

from orchestrator.net.addresses import AddressPolicy, IpAddress, Location

MAX_ADDRESSES = 4  # of one host that are tried in turn
# A resolver that does not answer occupies its thread for half a minute, even if nobody waits for it
# any more. Strangers choose the names, so files are written in other threads.
_RESOLVERS = ThreadPoolExecutor(32, "resolver")

Resolve = Callable[[str, int], Awaitable[list[IpAddress]]]


async def resolve_host(host: str, port: int) -> list[IpAddress]:
    """Resolve a name with the system's resolver; addresses in its order of preference, each once.

    Raises:
        OSError: the name has no address, or no resolver answers.
    """
    loop = asyncio.get_running_loop()
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(_RESOLVERS, lookup)
    # A scoped address (fe80::1%eth0) keeps its zone, and is refused because of it later.
    return [ipaddress.ip_address(text) for text in dict.fromkeys(str(f[4][0]) for f in found)]


@dataclass(frozen=True, slots=True)
class Network:
    """How the network is reached. Tests pass another resolver and another certificate authority.

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


async def checked_addresses(
    location: Location, policy: AddressPolicy | None, network: Network, timeout_s: float
) -> list[IpAddress]:
    """Resolve the host of `location` and check every address, unless `policy` is None.

    Returns at least one and at most `MAX_ADDRESSES` addresses.

    Raises:
        AddressRefused: the policy refuses one of them.
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


class PinnedClient:
    """Makes HTTP requests to checked addresses only. It follows no redirects.

    Every request has a connection of its own, to the addresses that were checked for it: one that
    was kept from an earlier request would evade the check. Several tasks may share a client.

    Args:
        policy: which addresses are allowed; None trusts all of them.
        connect_s: for resolving the name, and again for connecting.
        stall_s: the longest time without progress in either direction.
    """

    def __init__(
        self,
        network: Network,
        policy: AddressPolicy | None,
        *,
        connect_s: float,
        stall_s: float,
    ) -> None:
        self._network = network
        self._policy = policy
        self._connect_s = connect_s
        self._timeouts = {
            "connect": connect_s,
            "read": stall_s,
            "write": stall_s,
            "pool": connect_s,
        }

    async def resolve(self, location: Location) -> list[IpAddress]:
        """Return the checked addresses of a host.

        Raises:
            AddressRefused: the policy refuses one of them.
            OSError: the name does not resolve in time.
        """
        return await checked_addresses(location, self._policy, self._network, self._connect_s)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        location: Location,
        addresses: Sequence[IpAddress],
        *,
        headers: Mapping[str, str],
        content: bytes | AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[httpcore.Response]:
        """Make one request to `addresses`, as returned by `resolve`; yield the open response.

        Raises:
            httpcore.NetworkError, TimeoutException, ProtocolError: the exchange failed.
        """
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._tls_context if location.scheme == "https" else None,
            max_connections=1,
            network_backend=_PinnedBackend(addresses),
        )
        # The URL has the name and not the number, so that TLS checks the name.
        url = httpcore.URL(
            scheme=location.scheme, host=location.host, port=location.port, target=location.target
        )
        sent = {"Host": location.authority, "Connection": "close", **headers}
        async with (
            pool,
            pool.stream(
                method,
                url,
                headers=list(sent.items()),
                content=content,
                extensions={"timeout": self._timeouts},
            ) as response,
        ):
            yield response

    @cached_property
    def _tls_context(self) -> ssl.SSLContext:
        return self._network.tls_context()


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to the given addresses only, whatever host name it gets."""

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
