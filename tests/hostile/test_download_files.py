"""Inputs with file://, full disks, and secrets in addresses."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from musetalk_pipeline.errors import (
    DownloadFailed,
    MediaTooLarge,
    PipelineError,
    SourceRefused,
    Stage,
    StageFailed,
)
from orchestrator.net.connections import Network
from serve_app.inputs.download_body import Downloaded
from serve_app.inputs.downloads import download
from serve_app.net.addresses import AddressPolicy
from serve_app.telemetry.redact import RedactingFilter
from tests.hostile.download_rig import (
    BODY,
    LOOPBACK,
    NO_CURL,
    QUICK,
    assert_is_body,
    needs_curl,
    only_curl_reads_it,
)
from tests.hostile.raw_server import Exchange, serve

pytestmark = pytest.mark.usefixtures("no_waits", "no_child_is_left")


# --- file:// --------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An allowed folder with a good file in it, and a forbidden one beside it."""
    allowed, forbidden = tmp_path / "allowed", tmp_path / "allowed-not"
    for folder in (allowed, forbidden):
        folder.mkdir()
        (folder / "clip ü.mp4").write_bytes(BODY)
    (allowed / "sub").mkdir()
    (allowed / "sub" / "b.mp4").write_bytes(BODY)
    (allowed / "inside").symlink_to(allowed / "sub" / "b.mp4")
    (allowed / "escape").symlink_to(forbidden / "clip ü.mp4")
    (allowed / "door").symlink_to(forbidden)
    os.mkfifo(allowed / "pipe")
    (allowed / "zero").symlink_to("/dev/zero")
    return allowed, forbidden


async def take(url: str, target: Path, *allowed: Path) -> Downloaded:
    return await download(
        url, target, policy=AddressPolicy(), limits=QUICK, allowed_folders=allowed
    )


@pytest.mark.parametrize(
    "path", ["/clip%20%C3%BC.mp4", "/sub/b.mp4", "/inside", "/sub/../sub/b.mp4", "//sub//b.mp4"]
)
@pytest.mark.parametrize("start", ["file://", "file://localhost", "FILE://"])
async def test_files_in_an_allowed_folder_are_copied(
    target: Path, folders: tuple[Path, Path], path: str, start: str
) -> None:
    result = await take(f"{start}{folders[0]}{path}", target, folders[0])
    assert_is_body(result)
    assert not target.is_symlink() and target.stat().st_nlink == 1


@pytest.mark.parametrize(
    "url",
    [
        "file://{forbidden}/clip%20%C3%BC.mp4",
        "file://{allowed}/../allowed-not/clip%20%C3%BC.mp4",
        "file://{allowed}/%2e%2e/allowed-not/clip%20%C3%BC.mp4",
        "file://{allowed}/escape",
        "file://{allowed}/door/clip%20%C3%BC.mp4",
        "file://{allowed}/pipe",
        "file://{allowed}/zero",
        "file://{allowed}",
        "file://{allowed}/",
        "file://{allowed}/sub",
        "file://{allowed}/sub/b.mp4?x",
        "file://{allowed}/sub/b.mp4#x",
        "file://{allowed}/sub/b.mp4%00.mp4",
        "file://{allowed}/sub/b.mp4%FF",
        "file://example.org{allowed}/sub/b.mp4",
        "file://user@localhost{allowed}/sub/b.mp4",
        "file://127.0.0.1{allowed}/sub/b.mp4",
        "file:{allowed}/../allowed-not/clip%20%C3%BC.mp4",
        "file:sub/b.mp4",
        "file:",
        "file://",
        "file:///",
        "file:///etc/passwd",
        "file:///proc/self/environ",
        "file:///dev/zero",
        "file://[/x",
        "file://{allowed}/\ud800",
    ],
)
async def test_files_outside_are_refused(
    target: Path, folders: tuple[Path, Path], url: str
) -> None:
    allowed, forbidden = folders
    with pytest.raises(SourceRefused):
        await take(url.format(allowed=allowed, forbidden=forbidden), target, allowed)


async def test_without_allowed_folders_every_file_is_refused(
    target: Path, folders: tuple[Path, Path]
) -> None:
    with pytest.raises(SourceRefused, match="operator allows"):
        await take(f"file://{folders[0]}/sub/b.mp4", target)


async def test_a_missing_file_is_a_failed_download(
    target: Path, folders: tuple[Path, Path]
) -> None:
    with pytest.raises(DownloadFailed, match="does not exist") as caught:
        await take(f"file://{folders[0]}/missing.mp4", target, folders[0])
    assert caught.value.hint and "Check the path" in caught.value.hint


async def test_sizes_of_files_are_limited_too(target: Path, folders: tuple[Path, Path]) -> None:
    for name, size in (("empty", 0), ("tiny", 999), ("huge", QUICK.max_bytes + 1)):
        with (folders[0] / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(DownloadFailed, match="empty"):
        await take(f"file://{folders[0]}/empty", target, folders[0])
    with pytest.raises(DownloadFailed, match="999 bytes"):
        await take(f"file://{folders[0]}/tiny", target, folders[0])
    with pytest.raises(MediaTooLarge):
        await take(f"file://{folders[0]}/huge", target, folders[0])


# --- disks and secrets ----------------------------------------------------------------------------


async def test_a_target_that_cannot_be_written_is_this_workers_fault(tmp_path: Path) -> None:
    async with serve(lambda e: e.answer("200 OK", BODY)) as server:
        with pytest.raises(StageFailed, match="disk") as failed:
            await download(
                server.url(), tmp_path / "missing" / "clip.mp4", policy=LOOPBACK, limits=QUICK
            )
    assert failed.value.retryable and failed.value.stage is Stage.DOWNLOAD


FULL_DISK = """
import asyncio, json, os, sys
from pathlib import Path
from musetalk_pipeline.errors import PipelineError
from serve_app.net.addresses import AddressPolicy
from serve_app.inputs.download_body import DownloadLimits
from serve_app.inputs.downloads import download
try:
    asyncio.run(download(sys.argv[1], Path("/mnt/clip.mp4"), policy=AddressPolicy(),
                         limits=DownloadLimits(), allowed_folders=[Path(sys.argv[2])]))
except PipelineError as error:
    print(json.dumps([error.code, error.message, os.listdir("/mnt")]))
"""


def test_a_full_disk_is_named_and_left_clean(tmp_path: Path) -> None:
    """A real one: a file system of 64 KiB in a mount namespace of its own."""
    (tmp_path / "clip.mp4").write_bytes(bytes(1 << 20))
    script = 'mount -t tmpfs -o size=64k tmpfs /mnt && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    trial = subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False)
    if trial.returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk")
    done = subprocess.run(
        [*command, sys.executable, "-c", FULL_DISK, f"file://{tmp_path}/clip.mp4", str(tmp_path)],
        capture_output=True, timeout=60, check=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    code, message, left = json.loads(done.stdout)
    assert code == "stage_failed" and "disk is full" in message and left == []


@contextlib.asynccontextmanager
async def everything_logged() -> AsyncIterator[io.StringIO]:
    """Collect what the whole process logs at DEBUG through the filter that handlers get."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactingFilter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


SIGNED = "/clip.mp4?X-Amz-Credential=AKIA-one&X-Amz-Signature=0123abcdef&token=t0p"


@pytest.mark.parametrize("curl", [None, pytest.param("curl", marks=needs_curl)])
@pytest.mark.parametrize("end", ["200 OK", "403 Forbidden", "503 Busy"])
async def test_signatures_are_in_no_log_and_no_error(
    target: Path, end: str, curl: str | None
) -> None:
    async def script(e: Exchange) -> None:
        if e.number == 0:
            await e.answer("302 Found", b"", f"Location: /next{SIGNED[9:]}")
        elif curl and end.startswith("200"):
            await only_curl_reads_it(e)
        else:
            await e.answer(end, BODY)

    text = ""
    async with everything_logged() as stream, serve(script) as server:
        try:
            await download(
                server.url(SIGNED), target, policy=LOOPBACK, limits=QUICK,
                network=Network(curl=curl),
            )  # fmt: skip
        except PipelineError as error:
            text = f"{error!r} {error} {error.details}"
    text += stream.getvalue()
    assert "next" in text  # something was logged
    for secret in ("AKIA-one", "0123abcdef", "t0p"):
        assert secret not in text


async def test_own_log_lines_hold_no_query_even_without_the_filter(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="serve_app")
    async with serve(lambda e: e.answer("503 Busy")) as server:
        with pytest.raises(DownloadFailed):
            await download(
                server.url(SIGNED), target, policy=LOOPBACK, limits=QUICK, network=NO_CURL
            )  # fmt: skip
    records = [
        str(vars(record)) for record in caplog.records if record.name.startswith("serve_app")
    ]
    assert len(records) == QUICK.attempts
    assert not any("0123abcdef" in record for record in records)
