"""Which addresses may be fetched from: every spelling of every forbidden address, and the rest."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_pipeline.errors import SourceRefused, Stage
from orchestrator.net.connections import Network, checked_addresses, resolve_host
from orchestrator.net.special_addresses import refusal
from serve_app.net.addresses import AddressPolicy, follow, parse_location
from tests.threads import threads_taken

CLOSED = AddressPolicy()

# One address of every kind that is refused, with the word the refusal uses for it.
FORBIDDEN_V4 = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "10.255.255.255": "private",
    "100.64.0.1": "shared",
    "100.100.100.200": "shared",  # Alibaba's metadata
    "100.127.255.255": "shared",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "metadata",  # Azure's
    "169.254.0.1": "link-local",
    "169.254.169.254": "link-local",  # metadata nearly everywhere
    "169.254.170.2": "link-local",  # ECS task credentials
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.1": "reserved",
    "192.0.0.192": "reserved",  # Oracle's metadata
    "192.0.2.1": "documentation",
    "192.88.99.1": "6to4 relay",
    "192.168.0.1": "private",
    "192.168.255.255": "private",
    "198.18.0.1": "benchmarking",
    "198.19.255.255": "benchmarking",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "broadcast",
}
FORBIDDEN_V6 = {
    "::": "unspecified",
    "::1": "loopback",
    "::2": "IPv4-compatible",
    "::127.0.0.1": "IPv4-compatible",
    "::ffff:127.0.0.1": "IPv4-mapped",
    "::ffff:8.8.8.8": "IPv4-mapped",
    "::ffff:0:127.0.0.1": "IPv4-translated",
    "64:ff9b::127.0.0.1": "NAT64",
    "64:ff9b::8.8.8.8": "NAT64",
    "64:ff9b:1::10.0.0.1": "NAT64",
    "100::1": "reserved",
    "2001::1": "Teredo",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "Teredo",
    "2001:2::1": "reserved",
    "2001:10::1": "reserved",
    "2001:20::1": "reserved",
    "2001:db8::1": "documentation",
    "2002:7f00:1::": "6to4",
    "2002:a00:1::1": "6to4",
    "2002:808:808::1": "6to4",
    "2a00:1450:4001:81b:0:5efe:7f00:1": "ISATAP",
    "2a00:1450:4001:81b:200:5efe:a00:1": "ISATAP",
    "3fff::1": "documentation",
    "4000::1": "reserved",
    "5f00::1": "reserved",
    "fc00::1": "unique-local",
    "fd00:ec2::254": "unique-local",  # EC2's metadata
    "fd20:ce::254": "unique-local",  # Google's metadata
    "fe80::1": "link-local",
    "febf::1": "link-local",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
    "ff0e::1": "multicast",
}
PUBLIC = ("8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0",
          "192.0.1.1", "193.0.0.1", "223.255.255.255", "126.255.255.255", "128.0.0.1",
          "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "2001:200::1", "2003::1")  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), (FORBIDDEN_V4 | FORBIDDEN_V6).items())
def test_every_kind_of_address_that_is_not_public_is_refused(text: str, kind: str) -> None:
    assert (refusal(ipaddress.ip_address(text)) or "").startswith(kind)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_up_to_the_edges_of_the_blocks_are_accepted(text: str) -> None:
    assert refusal(ipaddress.ip_address(text)) is None


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_that_python_calls_private_is_accepted(ip: ipaddress.IPv4Address) -> None:
    if refusal(ip) is None:
        assert ip.is_global and not ip.is_multicast and not ip.is_reserved


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_that_python_calls_special_is_accepted(ip: ipaddress.IPv6Address) -> None:
    if refusal(ip) is None:
        assert ip.is_global and not ip.is_multicast and ip.teredo is None
        assert ip.sixtofour is None and ip.ipv4_mapped is None


@given(st.ip_addresses(v=4))
def test_no_embedding_of_an_ipv4_address_in_ipv6_is_accepted(ip: ipaddress.IPv4Address) -> None:
    low = int(ip)
    for prefix in ("::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::"):
        assert refusal(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) + low))
    assert refusal(ipaddress.IPv6Address((0x2002 << 112) | (low << 80) | 1))
    assert refusal(ipaddress.IPv6Address((0x2001 << 112) | (low ^ 0xFFFF_FFFF)))


def ipv4_spellings(text: str) -> list[str]:
    """Return the ways in which inet_aton and browsers let an IPv4 address be written."""
    a, b, c, d = (int(part) for part in text.split("."))
    number = int(ipaddress.IPv4Address(text))
    fullwidth = str.maketrans("0123456789.", "０１２３４５６７８９．")
    return [
        str(number),
        f"0{number:o}",
        hex(number),
        hex(number).upper().replace("0X", "0x"),
        f"0X{number:x}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"{a:03}.{b:03}.{c:03}.{d:03}",
        f"{a}.{b}.{c}.{d:#x}",
        f"000{a:o}.{b}.{c}.{d}",
        f"{a}.{b}.{c}.{d}.",
        f"{a}.{b}.{c}.{d}".translate(fullwidth),
        f"{a}。{b}。{c}。{d}",
        f"[::ffff:{a}.{b}.{c}.{d}]",
        f"[::{a}.{b}.{c}.{d}]",
        f"[64:ff9b::{a}.{b}.{c}.{d}]",
        f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]",
        f"[0:0:0:0:0:ffff:{number >> 16:04X}:{number & 0xFFFF:04X}]",
        f"[2002:{number >> 16:x}:{number & 0xFFFF:x}::]",
    ]


SPELLED = [
    f"http://{host}/clip.mp4"
    for text in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "0.0.0.0")
    for host in [text, *ipv4_spellings(text)]
]
DISGUISED = [
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://ＬＯＣＡＬＨＯＳＴ/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://[::1]/",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]/",
    "http://[::]/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[FD00:EC2::254]/",
]
MALFORMED = [
    "",
    " ",
    "clip.mp4",
    "//example.org/clip.mp4",
    "http:",
    "http:/",
    "http://",
    "http:///clip.mp4",
    "http:example.org/clip.mp4",
    "http://:80/",
    "http://./",
    "http://../",
    "http://.example.org/",
    "http://example..org/",
    "http://-example.org/",
    "http://example-.org/",
    "http://exa mple.org/",
    "http://example.org /",
    " http://example.org/",
    "http://example.org/\n",
    "http://example.org/\r\nHost: 127.0.0.1\r\n",
    "http://example.org/a\tb",
    "http://example.org/\x00",
    "http://exam\x00ple.org/",
    "http://example.org\\@127.0.0.1/",
    "http://127.0.0.1\\.example.org/",
    "http:\\\\example.org\\",
    "http://example.org\u2028/",
    "http://example.org:0/",
    "http://example.org:/",
    "http://example.org:65536/",
    "http://example.org:-1/",
    "http://example.org:8o/",
    "http://example.org:80:80/",
    "http://user@example.org/",
    "http://user:password@example.org/",
    "http://example.org@127.0.0.1/",
    "http://127.0.0.1@example.org/",
    "http://@example.org/",
    "http://:@example.org/",
    "http://example.org%2F@127.0.0.1/",
    "http://127.0.0.1%2F/",
    "http://%31%32%37.0.0.1/",
    "http://example.org%00/",
    "http://example.org%0d%0a/",
    "http://[::1%25lo]/",
    "http://[::1%lo]/",
    "http://[fe80::1%25eth0]/",
    "http://[2606:4700:4700::1111%251]/",
    "http://[::1/",
    "http://::1]/",
    "http://::1/",
    "http://[]/",
    "http://[127.0.0.1]/",
    "http://[v1.fe80::a]/",
    "http://[::1].example.org/",
    "http://[::ffff:0x7f.0.0.1]/",
    "http://[1:2:3:4:5:6:7:8:9]/",
    "http://256.256.256.256/",
    "http://1.2.3/",
    "http://1.2.3.4.5/",
    "http://1.2.3.0x/",
    "http://99999999999/",
    "http://0x1ffffffff/",
    "http://example.1/",
    "http://example.0x7f/",
    "http://" + "a" * 64 + ".org/",
    "http://" + "a." * 130 + "org/",
    "http://xn--/",
    "http://xn--\u00fc/",
    "http://exa\u00admple\u200b.\ud800.org/",
    "http://a\u0338b\u2100.org/",
    "http://example.org℀@127.0.0.1/",
    "http://exa$mple.org/",
    "http://exa<mple>.org/",
    "http://exa'mple.org/",
    "http://exa|mple;id.org/",
    "http://$(id).org/",
    "http://`id`.org/",
    "ftp://example.org/clip.mp4",
    "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/stats",
    "ldap://127.0.0.1/",
    "smb://127.0.0.1/share",
    "data:video/mp4;base64,AAAA",
    "javascript:alert(1)",
    "concat:/etc/passwd|/etc/hosts",
    "subfile,,start,0,end,1,,:/etc/passwd",
    "crypto+http://example.org/",
    "hls+http://example.org/a.m3u8",
    "rtmp://example.org/live",
    "unix:/var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "s3://bucket/clip.mp4",
    "blob:http://example.org/1",
    "ws://example.org/",
    "HTTP//example.org/",
    "/etc/passwd",
    "../../etc/passwd",
    "-o/etc/passwd",
    "@/etc/passwd",
    "https://example.org:443@127.0.0.1:80/",
]


async def check_url(url: str, policy: AddressPolicy) -> None:
    """Take a URL through everything that is decided before a connection is made."""

    async def resolve(host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        # What the C library does with numbers in odd spellings, and with the local name.
        if host == "localhost":
            return [ipaddress.ip_address("127.0.0.1")]
        try:
            return [ipaddress.ip_address(socket.inet_aton(host))]
        except OSError:
            return [ipaddress.ip_address("93.184.215.14")]

    await checked_addresses(parse_location(url), policy, Network(resolve=resolve), 5.0)


@pytest.mark.parametrize("url", SPELLED + DISGUISED + MALFORMED)
async def test_hostile_urls_are_refused_before_any_connection(url: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        await check_url(url, CLOSED)
    assert refused.value.code == "source_refused"
    assert refused.value.stage is Stage.DOWNLOAD
    assert refused.value.error_type == "media_error"
    assert "password" not in str(refused.value.details)


def test_there_are_enough_hostile_urls() -> None:
    assert len(set(SPELLED + DISGUISED + MALFORMED)) >= 200


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("http://example.org", "example.org", 80, "/"),
        ("HTTPS://Example.ORG./a", "example.org", 443, "/a"),
        ("https://example.org:8443/a?b=c&d=%2F", "example.org", 8443, "/a?b=c&d=%2F"),
        ("http://bücher.example/ü%20x", "xn--bcher-kva.example", 80, "/%C3%BC%20x"),
        ("http://8.8.8.8/", "8.8.8.8", 80, "/"),
        ("http://[2606:4700:4700:0::1111]:81/", "2606:4700:4700::1111", 81, "/"),
        ("http://a_b.example.org/#fragment", "a_b.example.org", 80, "/"),
        ('http://example.org/"quoted"', "example.org", 80, "/%22quoted%22"),
    ],
)  # fmt: skip
def test_good_urls_are_taken_apart(url: str, host: str, port: int, target: str) -> None:
    location = parse_location(url)
    assert (location.host, location.port, location.target) == (host, port, target)
    # The canonical form means the same place.
    assert parse_location(location.url) == location


ANY_TEXT = st.text(st.characters(), max_size=60)  # half surrogate pairs too, as JSON has them


@given(ANY_TEXT, st.sampled_from(["", "http://", "https://a.example/", "http://["]))
def test_any_text_is_either_refused_or_names_a_clean_host(text: str, start: str) -> None:
    try:
        location = parse_location(start + text)
    except SourceRefused:
        return
    assert location.host.isascii() and location.host == location.host.lower()
    assert location.target.isascii() and location.target.startswith("/")
    assert not set(location.host + location.target) & set(' \r\n\t\\"\x00')
    assert "@" not in location.authority
    assert parse_location(location.url) == location


@given(ANY_TEXT)
def test_redirects_are_judged_like_first_addresses(reference: str) -> None:
    try:
        location = follow(parse_location("https://example.org/a/b"), reference)
    except SourceRefused:
        return
    assert location.scheme in ("http", "https") and location.target.startswith("/")


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("c.mp4", "https://example.org/a/c.mp4"),
        ("/c.mp4?x=1", "https://example.org/c.mp4?x=1"),
        ("//other.example/c", "https://other.example/c"),
        ("http://other.example:81/c", "http://other.example:81/c"),
        ("?x=2", "https://example.org/a/b?x=2"),
    ],
)
def test_redirects_may_be_relative(reference: str, url: str) -> None:
    assert follow(parse_location("https://example.org/a/b"), reference).url == url


def check(policy: AddressPolicy, url: str, *addresses: str) -> None:
    policy.check(parse_location(url), [ipaddress.ip_address(a) for a in addresses])


def test_one_inner_address_among_outer_ones_refuses_the_host() -> None:
    with pytest.raises(SourceRefused):
        check(CLOSED, "http://example.org/", "93.184.215.14", "10.0.0.1")


def test_the_refusal_names_neither_the_address_nor_the_query() -> None:
    with pytest.raises(SourceRefused) as refused:
        check(CLOSED, "http://inside.example/x?sig=abc", "10.11.12.13")
    assert "10.11.12.13" not in f"{refused.value} {refused.value.details}"
    assert "abc" not in f"{refused.value} {refused.value.details}"


OPENED = [
    # policy, url, address, accepted
    ("localhost", "http://localhost/", "127.0.0.1", True),
    ("localhost", "http://localhost:8080/", "127.0.0.1", True),
    ("localhost", "http://other/", "127.0.0.1", False),
    ("localhost:8080", "http://localhost:8080/", "127.0.0.1", True),
    ("localhost:8080", "http://localhost/", "127.0.0.1", False),
    ("LocalHost.", "http://localhost/", "127.0.0.1", True),
    ("*.example.org", "http://a.example.org/", "10.0.0.1", True),
    ("*.example.org", "http://a.b.example.org/", "10.0.0.1", True),
    ("*.example.org", "http://example.org/", "10.0.0.1", False),
    ("*.example.org", "http://badexample.org/", "10.0.0.1", False),
    ("*.example.org:81", "http://a.example.org:81/", "10.0.0.1", True),
    ("*.example.org:81", "http://a.example.org/", "10.0.0.1", False),
    ("10.0.0.0/8", "http://anything.example/", "10.1.2.3", True),
    ("10.0.0.0/8", "http://10.1.2.3/", "10.1.2.3", True),
    ("10.0.0.0/8", "http://anything.example/", "11.0.0.1", True),
    ("10.0.0.0/8", "http://anything.example/", "192.168.0.1", False),
    ("127.0.0.1", "http://127.0.0.1:9000/", "127.0.0.1", True),
    ("127.0.0.1:9000", "http://127.0.0.1:9000/", "127.0.0.1", True),
    ("127.0.0.1:9000", "http://127.0.0.1:9001/", "127.0.0.1", False),
    ("::1", "http://[::1]:9000/", "::1", True),
    ("[::1]:9000", "http://[::1]:9000/", "::1", True),
    ("[::1]:9000", "http://[::1]:9001/", "::1", False),
    ("fd00::/8", "http://inside.example/", "fd00::1", True),
    ("a.example, 10.0.0.0/8, b.example", "http://b.example/", "192.168.0.1", True),
    ("10.0.0.0/8", "http://mapped.example/", "::ffff:10.0.0.1", False),
]


@pytest.mark.parametrize(("entries", "url", "address", "accepted"), OPENED)
def test_operators_open_hosts_and_networks(
    entries: str, url: str, address: str, accepted: bool
) -> None:
    policy = AddressPolicy(frozenset(entry.strip() for entry in entries.split(",")))
    if accepted:
        check(policy, url, address)
        return
    with pytest.raises(SourceRefused):
        check(policy, url, address)


def test_an_opened_address_in_an_odd_spelling_stays_refused() -> None:
    for host in ipv4_spellings("127.0.0.1")[:12]:
        with pytest.raises(SourceRefused):
            parse_location(f"http://{host}/")


@pytest.mark.parametrize(
    "entry",
    ["http://example.org", "a b/", "*.10.0.0.1", "10.0.0.1/8", "user@host", "host:0", "*", "a/b"],
)
def test_an_allow_list_entry_that_is_not_understood_stops_the_start(entry: str) -> None:
    with pytest.raises(ValueError, match="ALLOWED_SOURCE_HOSTS"):
        AddressPolicy(frozenset([entry]))


def test_locations_show_no_query() -> None:
    text = repr(parse_location("https://example.org/a?X-Amz-Signature=abc"))
    assert "abc" not in text and "https://example.org/a" in text


def test_spellings_of_this_test_mean_what_they_say() -> None:
    # Where the C library reads a spelling, it reads the address that the test claims.
    for text, spelling in itertools.product(("127.0.0.1", "10.0.0.1"), range(9)):
        assert socket.inet_ntoa(socket.inet_aton(ipv4_spellings(text)[spelling])) == text


async def test_names_are_resolved_when_all_common_threads_are_taken():
    """And so names that never resolve take none of the threads that files are written with."""
    with threads_taken():
        async with asyncio.timeout(10.0):
            assert await resolve_host("localhost", 80)
