"""How long the shared copy of avatars stays in Backblaze B2, over the real protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fake_b2
import pytest
from fake_b2 import FakeB2
from test_shared_avatars import uploads_are_done

from musetalk_pipeline.errors import UploadFailed
from serve_app.avatars.shared import USED, SharedAvatars
from serve_app.avatars.shared_retention import SWEPT, SharedRetention
from serve_app.outputs.b2_bucket import B2Bucket, B2Settings

DAY_MS = 86_400_000
KEEP_DAYS = 30
OLD, NEW = "a" * 32, "b" * 32
FOLDER = "avatar/outputs/avatars"


@pytest.fixture
def b2() -> Iterator[FakeB2]:
    with fake_b2.running() as server:
        server.download_url = server.url
        server.capabilities.append("deleteFiles")
        server.now_ms = 1_700_000_000_000
        yield server


def bucket(b2: FakeB2) -> B2Bucket:
    settings = B2Settings(fake_b2.KEY_ID, fake_b2.APP_KEY, fake_b2.BUCKET, realm=b2.url)
    return B2Bucket(replace(settings, tries=1))


def retention(b2: FakeB2) -> SharedRetention:
    """Return what sweeps on one of several machines."""
    return SharedRetention(bucket(b2), KEEP_DAYS * 86_400.0)


def put(b2: FakeB2, *avatars: str, **options: Any) -> SharedAvatars:
    """Upload two blocks of each avatar."""
    shared = SharedAvatars(bucket(b2), **options)
    for avatar in avatars:
        for name in ("0-50.block", "50-100.block"):
            shared.put_later(avatar, name, b"block")
    uploads_are_done()
    return shared


def avatars(b2: FakeB2) -> set[str]:
    """Return the avatars of which a file is there."""
    return {name.split("/")[3] for name in b2.files if name.startswith(FOLDER)} - {SWEPT}


def test_an_avatar_that_nobody_uses_leaves_the_bucket_with_all_versions(b2: FakeB2) -> None:
    put(b2, OLD)
    b2.now_ms += DAY_MS
    put(b2, OLD)  # another machine made the same at the same time
    b2.now_ms += 10 * DAY_MS
    put(b2, NEW)
    b2.store("avatar/outputs/a.mp4", b"video", "video/mp4", "video", is_large=False)
    b2.now_ms += (KEEP_DAYS - 10) * DAY_MS
    assert retention(b2).sweep() == []
    assert avatars(b2) == {OLD, NEW}
    b2.now_ms += DAY_MS
    assert retention(b2).sweep() == [OLD]
    assert avatars(b2) == {NEW}
    assert not [name for name, _ in b2.older if OLD in name]
    assert "avatar/outputs/a.mp4" in b2.files


def test_an_avatar_that_some_machine_uses_stays_for_ever(b2: FakeB2) -> None:
    put(b2, OLD, NEW)
    for _ in range(6):
        b2.now_ms += 20 * DAY_MS
        # A job on a machine that was started since; it has all blocks on its own disk.
        assert SharedAvatars(bucket(b2)).names(OLD) == {"0-50.block", "50-100.block"}
        uploads_are_done()
        retention(b2).sweep()
    assert avatars(b2) == {OLD}
    assert b2.older == []  # one mark replaces the other


def test_a_use_is_marked_once_a_day_and_only_of_what_is_there(b2: FakeB2) -> None:
    now = [0.0]
    shared = put(b2, OLD, clock=lambda: now[0])
    uploads = b2.count("upload_file")
    for _ in range(3):
        shared.names(OLD)
        shared.names(NEW)
        uploads_are_done()
    assert b2.count("upload_file") == uploads + 1
    assert f"{FOLDER}/{OLD}/{USED}" in b2.files and avatars(b2) == {OLD}
    now[0] += 86_400.0
    shared.names(OLD)
    uploads_are_done()
    assert b2.count("upload_file") == uploads + 2


def test_a_use_in_the_middle_of_a_sweep_saves_the_avatar(b2: FakeB2) -> None:
    put(b2, OLD)
    b2.now_ms += (KEEP_DAYS + 1) * DAY_MS
    sweeping = retention(b2)

    def use(handler: fake_b2.Handler, _: bytes) -> None:
        """Let a job use it after it was listed, then answer as usual."""
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        b2.store(f"{FOLDER}/{OLD}/{USED}", b"", "a/b", "used", is_large=False)
        handler.answer(200, handler.b2_list_file_versions(body))

    b2.faults["b2_list_file_versions"] += [None, use]  # type: ignore[list-item]
    assert sweeping.sweep() == []
    assert avatars(b2) == {OLD}


def test_a_fleet_sweeps_once_a_day(b2: FakeB2) -> None:
    put(b2, OLD)
    b2.now_ms += (KEEP_DAYS + 1) * DAY_MS
    assert retention(b2).sweep() == [OLD]
    put(b2, NEW)
    for name in [name for name in b2.files if NEW in name]:
        b2.files[name] = replace(b2.files[name], uploaded_ms=1)
    for _ in range(7):
        b2.now_ms += DAY_MS // 8
        assert retention(b2).sweep() == []
    b2.now_ms += DAY_MS // 8
    assert retention(b2).sweep() == [NEW]
    assert list(b2.files) == [f"{FOLDER}/{SWEPT}"] and b2.older == []


def test_a_key_that_may_not_delete_removes_nothing_and_says_so(b2: FakeB2) -> None:
    put(b2, OLD)
    b2.now_ms += (KEEP_DAYS + 1) * DAY_MS
    b2.capabilities.remove("deleteFiles")
    with pytest.raises(UploadFailed, match="shared avatars cannot be swept"):
        retention(b2).sweep()
    assert avatars(b2) == {OLD}
