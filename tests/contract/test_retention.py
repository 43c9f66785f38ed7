"""How long results are kept in the local folder, and what is never removed. Mend 2.1."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.config.settings import AppArgs
from serve_app.outputs.local import LocalStore, folder_lock
from serve_app.outputs.retention import DAY_S, Retention, retention
from serve_app.outputs.store import object_name

NOW = 2_000_000_000.0
FOREVER_S = 1e9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def add(folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Store a result of `size` bytes as if it had been written and used `age_s` ago."""

    def store(job_id: str, age_s: float, size: int = 1000) -> str:
        video = tmp_path / "made.mp4"
        video.write_bytes(b"v" * size)
        sidecar = f'{{"musetalk_job_id": "{job_id}"}}'.encode()
        LocalStore(folder).put(job_id, video, sidecar)
        name = object_name(job_id)
        for suffix in (".mp4", ".json"):
            os.utime(folder / (name + suffix), (NOW - age_s, NOW - age_s))
        return name

    return store


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def sweep(folder: Path, keep_s: float = FOREVER_S, max_bytes: float = 1e12) -> list[str]:
    return Retention(folder, keep_s, max_bytes, lambda: NOW).sweep()


def test_results_older_than_the_time_go_with_their_sidecars(folder, add):
    old, odd = add("old", 8 * DAY_S), add("ö/../odd", 9 * DAY_S)
    add("young", 6 * DAY_S)
    assert sweep(folder, keep_s=7 * DAY_S) == [odd, old]
    assert names(folder) == {"young.mp4", "young.json"}


def test_beyond_the_bytes_the_oldest_go_and_no_more_than_needed(folder, add):
    for number in range(5):
        add(f"job-{number}", 50_000.0 - number, size=1000)
    assert sweep(folder, max_bytes=3_500) == ["job-0", "job-1"]
    assert sweep(folder, max_bytes=3_500) == []


def test_what_was_written_or_asked_for_just_now_stays(folder, add):
    add("new", 60.0)
    add("read", 8 * DAY_S)
    add("noted", 8 * DAY_S)
    add("idle", 8 * DAY_S)
    store = LocalStore(folder)
    assert store.resolve("read.mp4") and store.resolve("noted.json")
    for name in ("read.mp4", "noted.mp4"):  # the store goes by the real clock
        path = folder / name
        assert path.stat().st_atime < NOW - 8 * DAY_S  # a real moment, long before NOW
        os.utime(path, (NOW, path.stat().st_mtime))
    assert sweep(folder, keep_s=1.0, max_bytes=0) == ["idle"]


def test_asking_for_a_file_marks_its_video_as_used(folder, add):
    add("job", 40 * 365 * DAY_S)
    before = (folder / "job.mp4").stat()
    LocalStore(folder).resolve("job.json")
    after = (folder / "job.mp4").stat()
    assert after.st_atime > before.st_atime and after.st_mtime == before.st_mtime


def test_what_is_not_a_result_stays(folder, add, tmp_path):
    add("job", 8 * DAY_S)
    foreign = {
        "holiday.mp4": b"mine", "notes.json": b"{}", "deep.json": b"[" * 5000, "list.json": b"[]",
        "named.json": b'{"musetalk_job_id": "another"}', "named.mp4": b"mine", "read.me": b"",
    }  # fmt: skip
    for name, content in foreign.items():
        (folder / name).write_bytes(content)
        os.utime(folder / name, (0, 0))
    outside = tmp_path / "link.json"
    outside.write_bytes(b'{"musetalk_job_id": "link"}')
    (folder / "link.json").symlink_to(outside)
    (folder / "folder.json").mkdir()
    assert sweep(folder, keep_s=1.0, max_bytes=0) == ["job"]
    assert names(folder) == {*foreign, "link.json", "folder.json"}
    assert outside.exists()


def test_a_result_that_is_written_again_while_it_is_to_be_removed_stays(folder, add):
    add("job", 8 * DAY_S)
    gone: list[str] = []
    sweeper = threading.Thread(target=lambda: gone.extend(sweep(folder, keep_s=1.0)))
    with folder_lock(folder, fcntl.LOCK_SH):  # as a writer holds it that renames
        sweeper.start()
        while not is_waited_for(folder):
            assert sweeper.is_alive()
        (folder / "job.mp4").write_bytes(b"again" * 300)
        os.utime(folder / "job.mp4", (NOW, NOW))
    sweeper.join(30)
    assert gone == [] and names(folder) == {"job.mp4", "job.json"}


def is_waited_for(folder: Path) -> bool:
    """Whether somebody waits for a lock on `folder`, as the kernel's list says."""
    inode = f":{folder.stat().st_ino} "
    locks = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and inode in line for line in locks)


def test_a_missing_folder_has_nothing_to_remove(tmp_path):
    assert sweep(tmp_path / "nowhere", keep_s=1.0) == []


def test_the_configuration_says_how_long_and_how_much(folder, add):
    args = AppArgs(pools=[{"name": "cpu"}])
    assert (args.results.keep_days, args.results.max_gb) == (7.0, 50.0)
    add("job", 0.0)
    small = AppArgs(pools=[{"name": "cpu"}], results={"max_gb": 1e-6, "keep_days": 1})
    os.utime(folder / "job.mp4", (0, 0))
    os.utime(folder / "job.json", (0, 0))
    assert retention(small, folder).sweep() == ["job"]


def test_results_and_sidecars_are_private(folder, add):
    """Mend 4.7: whatever the umask says."""
    before = os.umask(0)
    try:
        add("job", 0.0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_names_are_on_the_disk_before_a_result_is_reported(folder, add, monkeypatch):
    """Mend 3.9: the folder is synced after the last rename, not only the files before it."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1]
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (done.append(f"rename {Path(b).name}"), replace(a, b))[1]
    )
    add("job", 0.0)
    assert done[1] == "rename job.mp4" and done[3] == "rename job.json"
    assert done[4:] == [str(folder)]
