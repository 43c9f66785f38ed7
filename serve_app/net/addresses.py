"""Which addresses a source may be fetched from. This module parses and checks; it never resolves.

The rule is an allow-list. IPv4 is refused in every special-purpose block of the IANA registry;
IPv6 is refused outside global unicast (2000::/3) and in the special-purpose blocks inside it. That
excludes mapped, compatible, NAT64, unique-local, link-local and multicast addresses without listing
them, and a block that is assigned a purpose in the future stays refused.

Operators allow hosts and networks with ALLOWED_SOURCE_HOSTS and `inputs.allowed_hosts`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import idna

from musetalk_pipeline.errors import SourceRefused
from serve_app.telemetry.redact import shown_url

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443}

# IANA IPv4 Special-Purpose Address Registry, plus the one cloud metadata address outside it
# (168.63.129.16, Azure; the others are link-local, shared or reserved already).
_REFUSED_V4 = {
    ipaddress.IPv4Network(network): kind
    for network, kind in {
        "0.0.0.0/8": "unspecified",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared (carrier-grade NAT)",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "metadata",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved",
        "192.0.2.0/24": "documentation",
        "192.88.99.0/24": "6to4 relay",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "255.255.255.255/32": "broadcast",
        "240.0.0.0/4": "reserved",
    }.items()
}
_GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
# IANA IPv6 Special-Purpose Address Registry, inside global unicast.
_REFUSED_V6 = {
    ipaddress.IPv6Network(network): kind
    for network, kind in {
        "2001::/32": "Teredo",
        "2001::/23": "reserved",
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4",
        "3fff::/20": "documentation",
    }.items()
}
# These only name the reason; all of them are outside global unicast anyway.
_NAMED_V6 = {
    ipaddress.IPv6Network(network): kind
    for network, kind in {
        "::/128": "unspecified",
        "::1/128": "loopback",
        "::ffff:0:0/96": "IPv4-mapped",
        "::ffff:0:0:0/96": "IPv4-translated",
        "::/96": "IPv4-compatible",
        "64:ff9b::/96": "NAT64",
        "64:ff9b:1::/48": "NAT64",
        "fc00::/7": "unique-local",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local",
        "ff00::/8": "multicast",
    }.items()
}
# ISATAP (RFC 5214): the lower half of the interface identifier is an IPv4 address.
_ISATAP_IDENTIFIERS = (0x0000_5EFE, 0x0200_5EFE)

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# A last label of this form makes resolvers read the whole name as an IPv4 number (inet_aton).
_NUMERIC_LABEL = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
_FORBIDDEN_CHARS = re.compile(r"[\x00-\x20\x7f-\x9f\\\u2028\u2029\ud800-\udfff]")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]")
_MAX_EXAMPLE_CHARS = 200
_PATH_SAFE = "/:@!$&'()*+,;=-._~%"
_QUERY_SAFE = _PATH_SAFE + "?[]"


def refusal(address: IpAddress) -> str | None:
    """Return the reason why connections to `address` are refused; None if they are allowed."""
    if isinstance(address, ipaddress.IPv4Address):
        return next((kind for network, kind in _REFUSED_V4.items() if address in network), None)
    if address.scope_id is not None:
        return "zoned"
    if address not in _GLOBAL_UNICAST_V6:
        named = (kind for network, kind in _NAMED_V6.items() if address in network)
        return next(named, "reserved")
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP_IDENTIFIERS:
        return "ISATAP"
    return next((kind for network, kind in _REFUSED_V6.items() if address in network), None)


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
            SourceRefused: see `parse_location`.
        """
        _refuse_forbidden_chars(reference)
        try:
            target = urljoin(self.url, reference)
        except ValueError as exc:
            raise _refused("The redirect is malformed.", reference) from exc
        return parse_location(target)


def parse_location(url: str) -> Location:
    """Parse an http or https URL strictly.

    Raises:
        SourceRefused: control characters or backslashes, another scheme, user names, a zone id, a
            host that is neither a DNS name nor a plainly written address (`2130706433`,
            `0x7f.1`, `127.1` and the like are read differently by different software).
    """
    _refuse_path(url)
    _refuse_forbidden_chars(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise _refused("The URL is malformed.", url) from exc
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise SourceRefused(
            "Source refused: only http and https URLs can be fetched.",
            hint="Send a URL that begins with https:// or http://.",
            url=shown_url(url),
        )
    if "@" in parts.netloc:
        raise _refused("URLs with a user name or password are not accepted.", url)
    if port == 0 or parts.netloc.endswith(":"):
        raise _refused("The port is invalid.", url)
    host, ip = _parse_host(parts.netloc, parts.hostname or "", url)
    target = quote(parts.path or "/", safe=_PATH_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_QUERY_SAFE)
    return Location(scheme, host, port or DEFAULT_PORTS[scheme], target, ip)


def _refuse_path(text: str) -> None:
    """Tell a caller who sent the path of a file how to write it as a URL."""
    is_windows = _WINDOWS_PATH.match(text) is not None
    is_path = text.startswith(("/", "./", "../", "~/")) and not text.startswith("//")
    if not is_windows and not is_path:
        return
    if is_windows:
        example = "/" + text.replace("\\", "/")
    else:
        example = text if text.startswith("/") else "/folder/" + text.rpartition("/")[2]
    written = quote(example[:_MAX_EXAMPLE_CHARS], safe=_PATH_SAFE, errors="replace")
    raise SourceRefused(
        "Source refused: this is a path, not a URL.",
        hint=f"Write it as file://{written} (the worker reads it from folders that its operator "
        "allows), or send an http or https URL.",
        url=shown_url(text),
    )


def _refuse_forbidden_chars(url: str) -> None:
    if _FORBIDDEN_CHARS.search(url):
        raise _refused("URLs may not contain spaces, control characters or backslashes.", url)


def _refused(reason: str, url: str) -> SourceRefused:
    return SourceRefused(f"Source refused: {reason}", url=shown_url(url))


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
        raise _refused("Addresses with a zone id are not accepted.", url)
    try:
        ip = ipaddress.IPv6Address(text)
    except ValueError as exc:
        raise _refused("The host is not a valid IPv6 address.", url) from exc
    return str(ip), ip


def _parse_ipv4(host: str, url: str) -> tuple[str, IpAddress]:
    # Python's parser accepts four decimal parts without leading zeros and nothing else, so decimal,
    # octal, hexadecimal and short forms are refused here.
    try:
        ip = ipaddress.IPv4Address(host)
    except ValueError as exc:
        raise _refused("Write an IPv4 address as four decimal numbers.", url) from exc
    return str(ip), ip


def _ascii_name(hostname: str, url: str) -> str:
    """Return a checked DNS name in lower-case ASCII (IDNA 2008 with the UTS 46 mapping)."""
    host = hostname
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as exc:
            raise _refused("The host name is invalid.", url) from exc
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise _refused("The host name is invalid.", url)
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
            SourceRefused: one address is refused. The message names its kind and never the address
                itself, so that nobody can map an internal network with it.
        """
        if self.is_host_allowed(location):
            return
        for address in addresses:
            kind = refusal(address)
            if kind is not None and not self.is_address_allowed(address, location.port):
                raise SourceRefused(
                    f"Source refused: the host has a {kind} address, from which this worker does "
                    "not fetch.",
                    hint="Send a URL on the public internet. If you operate this worker and trust "
                    "that host, add it to ALLOWED_SOURCE_HOSTS or inputs.allowed_hosts.",
                    url=location.shown,
                )


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
    except SourceRefused as exc:
        raise _not_understood(entry) from exc
    if location.target != "/" or (wildcard and location.ip is not None):
        raise _not_understood(entry)
    port = location.port if re.search(r":[0-9]+$", entry) else None
    if location.ip is not None:
        return _Entry("", port, network=ipaddress.ip_network(location.ip))
    return _Entry(location.host, port, is_suffix=wildcard)


def _not_understood(entry: str) -> ValueError:
    return ValueError(
        f"{shown_url(entry)!r} in ALLOWED_SOURCE_HOSTS or inputs.allowed_hosts is not a host, "
        "host:port, *.domain or network"
    )
