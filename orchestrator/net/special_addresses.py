"""Special-purpose addresses, from the registries of IANA.

IPv4 is refused in every special-purpose block; IPv6 is refused outside global unicast (2000::/3)
and in the special-purpose blocks inside it. That excludes mapped, compatible, NAT64, unique-local,
link-local and multicast addresses without listing them, and a block that is assigned a purpose in
the future stays refused.
"""

from __future__ import annotations

import ipaddress

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


def refusal(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
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
