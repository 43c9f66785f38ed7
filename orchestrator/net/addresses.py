"""Which addresses may be connected to. This module parses and checks; it never resolves.

The public internet is allowed (special_addresses.py has the exceptions). Operators allow more hosts
and networks.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import idna

from orchestrator.net.shown import shown_url
from orchestrator.net.special_addresses import refusal

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443}

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# A last label of this form makes resolvers read the whole name as an IPv4 number (inet_aton).
_NUMERIC_LABEL = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_FORBIDDEN_CHARS = re.compile(r"[\x00-\x20\x7f-\x9f\\\u2028\u2029\ud800-\udfff]")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]")
_MAX_EXAMPLE_CHARS = 200
_PATH_SAFE = "/:@!$&'()*+,;=-._~%"
_QUERY_SAFE = _PATH_SAFE + "?[]"


class AddressRefused(Exception):
    """An address is malformed, or may not be connected to.

    `reason` is a sentence. `kind` is the kind of an address that is not on the public internet.
    """

    def __init__(self, reason: str, *, hint: str | None = None, kind: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.kind = reason, hint, kind


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed http or https URL. `host` is lower-case ASCII without brackets or final dot.

    `ip` is set if the host is written as an address. `target` is path and query, ASCII, ready for
    the request line; it may contain a signature, so `repr` leaves it out.
    """

    scheme: str
    host: str
    port: int
    target: str
    ip: IpAddress | None = None

    def __repr__(self) -> str:
        return f"Location({self.shown})"

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's default, port, as in the Host header."""
        host = f"[{self.host}]" if isinstance(self.ip, ipaddress.IPv6Address) else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole URL including its query. Never log it."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def shown(self) -> str:
        """The part of the URL that may be shown."""
        return shown_url(self.url)

    def follow(self, reference: str) -> Location:
        """Return the target of a redirect to `reference` (absolute or relative).

        Raises:
            AddressRefused: see `parse_location`.
        """
        _refuse_forbidden_chars(reference)
        try:
            target = urljoin(self.url, reference)
        except ValueError as exc:
            raise AddressRefused("The redirect is malformed.") from exc
        return parse_location(target)


def parse_location(url: str) -> Location:
    """Parse an http or https URL strictly.

    Raises:
        AddressRefused: control characters or backslashes, another scheme, user names, a zone id, a
            host that is neither a DNS name nor a plainly written address (`2130706433`,
            `0x7f.1`, `127.1` and the like are read differently by different software).
    """
    _refuse_path(url)
    _refuse_forbidden_chars(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise AddressRefused("The URL is malformed.") from exc
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise AddressRefused(
            "only http and https URLs can be used.",
            hint="Send a URL that begins with https:// or http://.",
        )
    if "@" in parts.netloc:
        raise AddressRefused("URLs with a user name or password are not accepted.")
    if port == 0 or parts.netloc.endswith(":"):
        raise AddressRefused("The port is invalid.")
    host, ip = _parse_host(parts.netloc, parts.hostname or "", url)
    target = quote(parts.path or "/", safe=_PATH_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_QUERY_SAFE)
    return Location(scheme, host, port or DEFAULT_PORTS[scheme], target, ip)


def _refuse_path(text: str) -> None:
    """Refuse the path of a file, with a sentence that shows how it is written as a URL."""
    is_windows = _WINDOWS_PATH.match(text) is not None
    is_path = text.startswith(("/", "./", "../", "~/")) and not text.startswith("//")
    if not is_windows and not is_path:
        return
    if is_windows:
        example = "/" + text.replace("\\", "/")
    else:
        example = text if text.startswith("/") else "/folder/" + text.rpartition("/")[2]
    written = quote(example[:_MAX_EXAMPLE_CHARS], safe=_PATH_SAFE, errors="replace")
    raise AddressRefused(
        "this is a path, not a URL.",
        hint=f"Write it as file://{written} (the worker reads it from folders that its operator "
        "allows), or send an http or https URL.",
    )


def _refuse_forbidden_chars(url: str) -> None:
    if _FORBIDDEN_CHARS.search(url):
        raise AddressRefused("URLs may not contain spaces, control characters or backslashes.")


def _parse_host(netloc: str, hostname: str, url: str) -> tuple[str, IpAddress | None]:
    """Return the canonical host and, if it is written as an address, that address."""
    if netloc.startswith("["):
        return _parse_ipv6(hostname, url)
    host = _ascii_name(hostname, url)
    if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        return _parse_ipv4(host, url)
    return host, None


def _parse_ipv6(text: str, url: str) -> tuple[str, IpAddress]:
    if "%" in text:
        raise AddressRefused("Addresses with a zone id are not accepted.")
    try:
        ip = ipaddress.IPv6Address(text)
    except ValueError as exc:
        raise AddressRefused("The host is not a valid IPv6 address.") from exc
    return str(ip), ip


def _parse_ipv4(host: str, url: str) -> tuple[str, IpAddress]:
    # Python's parser accepts four decimal parts without leading zeros and nothing else, so decimal,
    # octal, hexadecimal and short forms are refused here.
    try:
        ip = ipaddress.IPv4Address(host)
    except ValueError as exc:
        raise AddressRefused("Write an IPv4 address as four decimal numbers.") from exc
    return str(ip), ip


def _ascii_name(hostname: str, url: str) -> str:
    """Return a checked DNS name in lower-case ASCII (IDNA 2008 with the UTS 46 mapping)."""
    host = hostname
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as exc:
            raise AddressRefused("The host name is invalid.") from exc
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise AddressRefused("The host name is invalid.")
    return host


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Decides where connections may go. By default only the public internet is allowed.

    `allowed_hosts` contains `host`, `host:port`, `*.example.org`, `*.example.org:port`, an address
    or a network in CIDR notation (IPv6 with a port in brackets). A named host is trusted whatever
    it resolves to; an address or network is trusted under any name.
    """

    allowed_hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for entry in self.allowed_hosts:
            _parse_entry(entry)

    def is_host_allowed(self, location: Location) -> bool:
        """Return whether the operator trusts the host by name."""
        return any(_parse_entry(entry).names(location) for entry in self.allowed_hosts)

    def is_address_allowed(self, address: IpAddress, port: int) -> bool:
        """Return whether the operator trusts the address itself."""
        return any(_parse_entry(entry).covers(address, port) for entry in self.allowed_hosts)

    def check(self, location: Location, addresses: list[IpAddress]) -> None:
        """Check all `addresses` that the host of `location` resolved to.

        One refused address refuses the host: a name that points both inside and outside is an
        attack or a mistake.

        Raises:
            AddressRefused: one address is refused. The message names its kind and never the address
                itself, so that nobody can map an internal network with it.
        """
        if self.is_host_allowed(location):
            return
        for address in addresses:
            kind = refusal(address)
            if kind is not None and not self.is_address_allowed(address, location.port):
                raise AddressRefused(f"the host has a {kind} address.", kind=kind)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the allow-list: a name (with `is_suffix`, everything below it) or a network."""

    name: str
    port: int | None
    is_suffix: bool = False
    network: IpNetwork | None = None

    def names(self, location: Location) -> bool:
        if self.network is not None or self.port not in (None, location.port):
            return False
        if self.is_suffix:
            return location.host.endswith("." + self.name)
        return location.host == self.name

    def covers(self, address: IpAddress, port: int) -> bool:
        if self.network is None or self.port not in (None, port):
            return False
        return address in self.network


def _parse_entry(entry: str) -> _Entry:
    """Read one allow-list entry.

    Raises:
        ValueError: not a host, host:port, wildcard, address or network.
    """
    try:
        return _Entry("", None, network=ipaddress.ip_network(entry))
    except ValueError:
        pass  # not a network: a host, perhaps with a port
    wildcard = entry.startswith("*.")
    try:
        location = parse_location("http://" + entry.removeprefix("*."))
    except AddressRefused as exc:
        raise _not_understood(entry) from exc
    if location.target != "/" or (wildcard and location.ip is not None):
        raise _not_understood(entry)
    port = location.port if re.search(r":[0-9]+$", entry) else None
    if location.ip is not None:
        return _Entry("", port, network=ipaddress.ip_network(location.ip))
    return _Entry(location.host, port, is_suffix=wildcard)


def _not_understood(entry: str) -> ValueError:
    return ValueError(f"{shown_url(entry)!r} is not a host, host:port, *.domain or network")
