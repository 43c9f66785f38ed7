"""Where a download leads: redirects, names and their addresses, certificates."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shutil
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from musetalk_pipeline.errors import (
    DownloadFailed,
    SourceRefused,
)
from orchestrator.net.connections import Network
from serve_app.inputs.downloads import download
from serve_app.net.addresses import AddressPolicy
from tests.hostile.download_rig import (
    BODY,
    LOOPBACK,
    NO_CURL,
    ONCE,
    QUICK,
    answering,
    assert_failed,
    assert_is_body,
    fetch,
    needs_curl,
    only_curl_reads_it,
)
from tests.hostile.raw_server import Exchange, serve

pytestmark = pytest.mark.usefixtures("no_waits", "no_child_is_left")


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "reference", ["/file", "file", "//{authority}/file", "http://{authority}/file"]
)
async def test_redirects_are_followed(target: Path, status: int, reference: str) -> None:
    async def script(e: Exchange) -> None:
        if e.path == "/file":
            await e.answer("200 OK", BODY)
            return
        where = reference.format(authority=e.header("host"))
        await e.answer(f"{status} Moved", b"<html>moved</html>", f"Location: {where}")

    result, server = await fetch(script, target)
    assert_is_body(result)
    assert [e.path for e in server.exchanges] == ["/clip.mp4", "/file"]


async def test_redirect_loops_end(target: Path) -> None:
    result, server = await fetch(lambda e: e.answer("302 Found", b"", "Location: /again"), target)
    assert_failed(result, DownloadFailed, "more than 5 redirects")
    assert len(server.exchanges) == 6


HOSTILE_REDIRECTS = [
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.2:{port}/",
    "http://2130706434:{port}/",
    "http://0x7f000002:{port}/",
    "http://0177.0.0.2:{port}/",
    "http://0:{port}/",
    "http://user@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.org/",
    "//10.0.0.1/",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "ftp://127.0.0.1/clip.mp4",
    "gopher://127.0.0.1:{port}/_GET",
    "data:video/mp4;base64,AAAA",
    "http://[::1%25lo]:{port}/",
    "http://\u0000/",
]


@pytest.mark.parametrize("curl", [None, pytest.param("curl", marks=needs_curl)])
@pytest.mark.parametrize("reference", HOSTILE_REDIRECTS)
async def test_redirects_to_forbidden_places_are_refused(
    target: Path, reference: str, curl: str | None
) -> None:
    """With curl, the redirect itself is in an answer that only curl can read."""

    async def script(e: Exchange) -> None:
        where = reference.format(port=(e.header("host") or "").partition(":")[2])
        broken = "Bad Name: x\r\n" if curl else ""
        await e.send(
            f"HTTP/1.1 302 Found\r\n{broken}Content-Length: 0\r\nLocation: {where}\r\n\r\n"
        )

    result, server = await fetch(script, target, ONCE, Network(curl=curl))
    if "\u0000" in reference:  # no HTTP at all; what a client makes of it is its own affair
        assert isinstance(result, DownloadFailed | SourceRefused)
        return
    assert_failed(result, SourceRefused, "Source refused")
    assert len(server.exchanges) == (2 if curl else 1)


async def test_a_redirect_inside_is_refused_though_the_first_host_is_trusted(target: Path) -> None:
    async with serve(lambda e: e.answer("200 OK", BODY), host="127.0.0.2") as inside:
        policy = AddressPolicy(frozenset({"localhost"}))

        async def script(e: Exchange) -> None:
            await e.answer("302 Found", b"", f"Location: {inside.url()}")

        async with serve(script) as outside:
            with pytest.raises(SourceRefused, match="loopback"):
                await download(
                    outside.url(host="localhost"), target, policy=policy, limits=QUICK
                )  # fmt: skip
        assert inside.connections == 0


# --- names ----------------------------------------------------------------------------------------


async def test_a_name_is_resolved_once_and_that_address_is_connected_to(target: Path) -> None:
    """DNS rebinding: the second answer would lead inside, so nobody may ask twice."""
    network, asked = answering("127.0.0.1", "127.0.0.2")
    async with (
        serve(lambda e: e.answer("200 OK", b"inside" * 500), host="127.0.0.2"),
        serve(lambda e: e.answer("200 OK", BODY)) as outside,
    ):
        url = outside.url(host="media.example")
        result = await download(url, target, policy=LOOPBACK, limits=QUICK, network=network)
    assert_is_body(result)
    assert asked == ["media.example"]
    assert outside.exchanges[0].header("host") == f"media.example:{outside.port}"


async def test_every_attempt_and_every_hop_is_judged_anew(target: Path) -> None:
    network, asked = answering("127.0.0.1", "127.0.0.2")
    async with serve(lambda e: e.answer("503 Busy")) as outside:
        with pytest.raises(SourceRefused):
            await download(
                outside.url(host="media.example"), target, policy=LOOPBACK, limits=QUICK,
                network=network,
            )  # fmt: skip
    assert asked == ["media.example"] * 2 and len(outside.exchanges) == 1

    network, asked = answering("127.0.0.1", "169.254.169.254")
    async with serve(lambda e: e.answer("302 Found", b"", "Location: /b")) as outside:
        with pytest.raises(SourceRefused, match="link-local"):
            await download(
                outside.url(host="media.example"), target, policy=LOOPBACK, limits=QUICK,
                network=network,
            )  # fmt: skip
    assert len(outside.exchanges) == 1


async def test_a_dead_address_is_passed_over_for_the_next(target: Path) -> None:
    policy = AddressPolicy(frozenset({"127.0.0.0/8"}))
    network, _ = answering(["127.0.0.3", "127.0.0.1"])
    async with serve(lambda e: e.answer("200 OK", BODY)) as server:
        result = await download(
            server.url(host="media.example"), target, policy=policy, limits=ONCE, network=network
        )
    assert_is_body(result)


async def test_a_name_that_does_not_resolve_is_a_failed_download(target: Path) -> None:
    asked = 0

    async def resolve(host: str, port: int) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise OSError("no such name")
        if asked == 2:
            return []
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(DownloadFailed, match="could not be resolved"):
        await download(
            "http://nowhere.example/", target, policy=LOOPBACK,
            limits=replace(QUICK, connect_s=0.05), network=Network(resolve=resolve, curl=None),
        )  # fmt: skip
    assert asked == 3


async def test_proxies_of_the_environment_are_not_used(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(lambda e: e.answer("200 OK", b"proxy" * 500)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        result, _ = await fetch(lambda e: e.answer("200 OK", BODY), target)
        assert_is_body(result)
        if shutil.which("curl"):
            result, _ = await fetch(only_curl_reads_it, target, ONCE, Network())
            assert_is_body(result)
        assert proxy.connections == 0


# --- TLS ------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of this test, and servers that it vouches for."""

    def __init__(self, folder: Path) -> None:
        self.ca_file = folder / "ca.pem"
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        certificate = self._certificate(self._name, self._key, [], is_authority=True)
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server_context(self, *names: str, is_expired: bool = False) -> ssl.SSLContext:
        """Return the TLS side of a server that may call itself these `names`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = self._certificate(subject, key, list(names), is_expired=is_expired)
        path = self._folder / f"{len(list(self._folder.iterdir()))}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[str],
        *,
        is_authority: bool = False,
        is_expired: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * day)
            .not_valid_after(now - day if is_expired else now + day)
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "ca").mkdir()
    return Authority(tmp_path / "ca")


@pytest.mark.parametrize("curl", [None, pytest.param("curl", marks=needs_curl)])
async def test_the_certificate_is_checked_against_the_name_not_the_address(
    target: Path, authority: Authority, curl: str | None
) -> None:
    network = replace(answering("127.0.0.1")[0], ca_file=authority.ca_file, curl=curl)
    script = only_curl_reads_it if curl else lambda e: e.answer("200 OK", BODY)
    async with serve(script, tls=authority.server_context("media.example")) as server:
        result = await download(
            server.url(host="media.example"), target, policy=LOOPBACK, limits=ONCE, network=network
        )
        assert_is_body(result)
        assert set(server.server_names) == {"media.example"}
        with pytest.raises(DownloadFailed, match="certificate"):
            await download(
                server.url(host="other.example"), target.with_name("clip.mp4"), policy=LOOPBACK,
                limits=ONCE, network=network,
            )  # fmt: skip


@pytest.mark.parametrize("fault", ["unknown authority", "expired", "other name"])
async def test_a_bad_certificate_is_refused_and_not_tried_again(
    target: Path, authority: Authority, tmp_path: Path, fault: str
) -> None:
    (tmp_path / "other").mkdir()
    trusted = Authority(tmp_path / "other") if fault == "unknown authority" else authority
    names = ("other.example",) if fault == "other name" else ("media.example",)
    context = authority.server_context(*names, is_expired=fault == "expired")
    network = replace(answering("127.0.0.1")[0], ca_file=trusted.ca_file)
    async with serve(lambda e: e.answer("200 OK", BODY), tls=context) as server:
        with pytest.raises(DownloadFailed, match="certificate is not valid"):
            await download(
                server.url(host="media.example"), target, policy=LOOPBACK, limits=QUICK,
                network=network,
            )  # fmt: skip
        assert server.server_names == ["media.example"]


async def test_a_server_that_does_not_speak_tls_is_a_failed_download(target: Path) -> None:
    async with serve(lambda e: e.answer("200 OK", BODY)) as server:
        url = server.url().replace("http:", "https:")
        with pytest.raises(DownloadFailed):
            limits = replace(ONCE, connect_s=0.3)
            await download(url, target, policy=LOOPBACK, limits=limits, network=NO_CURL)
