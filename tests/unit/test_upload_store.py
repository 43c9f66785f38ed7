"""The store of uploads: how long they stay, and disks that fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.uploads.errors import UploadNotFound, UploadsFull
from serve_app.uploads.folder import DATA, RECORD, UploadFolder, UploadRules
from serve_app.uploads.space import UploadSpace
from serve_app.uploads.store import UploadStore

ROOT = Path(__file__).resolve().parents[2]
OWNER = "a" * 64
HOUR = 3600.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    clock = Clock()
    clock.now = tmp_path.stat().st_mtime
    return clock


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> UploadStore:
    folder = tmp_path / "uploads"
    folder.mkdir()
    rules = UploadRules(24 * HOUR, 2 * HOUR)
    return UploadStore(UploadFolder(folder, rules, clock), UploadSpace(folder, 1 << 30, 0))


def send(store: UploadStore, content: bytes) -> str:
    """Store a whole file; its id."""
    upload = store.create(OWNER, "a.wav", None)
    store.append(OWNER, upload.record.id, 0, content)
    return store.complete(OWNER, upload.record.id, by_content=True).record.id


def test_what_has_expired_goes_and_what_is_used_stays(
    store: UploadStore, clock: Clock, speech
) -> None:
    used, unused = send(store, speech(0.5).read_bytes()), send(store, speech(0.6).read_bytes())
    unfinished = store.create(OWNER, "b.wav", 5000).record.id
    clock.now += 1.9 * HOUR
    store.sweep()
    assert store.get(OWNER, unfinished).offset == 0
    clock.now += 20 * HOUR
    store.use(OWNER, used)
    with pytest.raises(UploadNotFound):  # before the sweep too
        store.get(OWNER, unfinished)
    clock.now += 5 * HOUR
    store.sweep()
    assert [upload.record.id for upload in store.all_of(OWNER)] == [used]
    names = {path.name for path in store.folder.path.iterdir()}
    assert names == {used + RECORD, used + DATA}
    assert unused not in store.space.taken and unfinished not in store.space.taken


def test_what_a_crash_left_goes(store: UploadStore, clock: Clock) -> None:
    folder = store.folder.path
    (folder / ("0" * 32 + DATA)).write_bytes(b"without a record")
    (folder / ("1" * 32 + RECORD)).write_text("{cut o")
    (folder / f".{'2' * 32}.json.abcdef.part").write_text("{")
    store.sweep()
    assert len(list(folder.iterdir())) == 3, "their writers may be at work"
    clock.now += 3 * HOUR
    store.sweep()
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_gone_has_no_uploads(store: UploadStore, speech) -> None:
    """The janitor logged an error with a trace every few minutes."""
    upload_id = send(store, speech(0.5).read_bytes())
    shutil.rmtree(store.folder.path)
    store.sweep()
    assert upload_id not in store.space.taken


def test_a_store_that_starts_again_counts_what_is_there(
    store: UploadStore, speech, clock: Clock
) -> None:
    content = speech(0.5).read_bytes()
    upload_id = send(store, content)
    store.create(OWNER, "b.wav", 5000)
    space = UploadSpace(store.folder.path, len(content) + 5000, 0)
    again = UploadStore(store.folder, space)
    with pytest.raises(UploadsFull):
        again.create(OWNER, "c.wav", 1)
    again.delete(OWNER, upload_id)
    again.create(OWNER, "c.wav", 1)


def test_a_crash_before_the_completion_costs_nothing(store: UploadStore, speech) -> None:
    """All bytes are there, so a client of tus has nothing left to send."""
    content = speech(0.5).read_bytes()
    upload_id = store.create(OWNER, "a.wav", len(content)).record.id
    store.append(OWNER, upload_id, 0, content)
    again = UploadStore(store.folder, UploadSpace(store.folder.path, 1 << 30, 0))
    assert again.use(OWNER, upload_id).is_finished


FILLING = """
import sys
from pathlib import Path
from serve_app.uploads.errors import UploadsFull
from serve_app.uploads.folder import UploadFolder, UploadRules
from serve_app.uploads.space import UploadSpace
from serve_app.uploads.store import UploadStore

folder = Path(sys.argv[1])
space = UploadSpace(folder, 1 << 30, free_bytes=-(1 << 40))
store = UploadStore(UploadFolder(folder, UploadRules(60, 60)), space)
upload_id = store.create("owner", "a.mp4", 200_000).record.id
store.append("owner", upload_id, 0, bytes(40_000))
try:
    store.append("owner", upload_id, 40_000, bytes(100_000))
except UploadsFull as full:
    print(full)
print(store.get("owner", upload_id).offset, (folder / f"{upload_id}.data").stat().st_size)
try:
    while True:
        store.create("owner", "b.mp4", 10)
except UploadsFull as full:
    print(full)
print(sum(path.suffix == ".part" for path in folder.iterdir()))
"""


def test_a_disk_that_fills_up_in_the_middle_keeps_what_was_stored(tmp_path: Path) -> None:
    """On a file system of 128 KiB that is really full."""
    script = tmp_path / "filling.py"
    script.write_text(FILLING)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=128k disk {disk} && exec {sys.executable} {script} {disk}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs a user namespace of its own")
    full = "The disk that uploads are stored on is full."
    assert done.stdout.splitlines() == [full, "40000 40000", full, "0"], done.stderr
