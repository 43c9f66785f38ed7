"""Avatars that are kept on this machine: budget, age, damage, full disks, many processes."""

from __future__ import annotations

import multiprocessing
import resource
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.survey import Survey
from musetalk_pipeline.track import Span, Track
from serve_app.avatars.local import ABANDONED_S, LocalAvatars
from serve_app.avatars.surveys import StoredSurveys
from serve_app.private_folders import FolderRefused

ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32
DAY_S = 86_400.0


class Clock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def avatars(tmp_path: Path, clock: Clock) -> LocalAvatars:
    return LocalAvatars(tmp_path / "avatars", 10_000, DAY_S, first_to_go=".block", clock=clock)


def kept(avatars: LocalAvatars) -> set[tuple[str, str]]:
    return {(file.avatar_id[0], file.name) for file in avatars.files()}


def test_a_file_comes_back_and_only_this_user_may_read_it(
    avatars: LocalAvatars, tmp_path: Path
) -> None:
    assert avatars.read(ONE, "a.block") is None
    assert avatars.write(ONE, "a.block", b"payload")
    assert avatars.read(ONE, "a.block") == b"payload"
    assert avatars.names(ONE) == {"a.block"}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {0o700, 0o600}
    assert [path.name for path in tmp_path.rglob("*.part")] == []


@pytest.mark.parametrize("name", ["../a", "a/b", ".hidden", "", "x" * 200])
def test_no_name_leads_out_of_the_folder(avatars: LocalAvatars, name: str) -> None:
    with pytest.raises(ValueError):
        avatars.write(ONE, name, b"")
    with pytest.raises(ValueError):
        avatars.read(name, "a.block")


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "avatars").symlink_to(tmp_path)
    with pytest.raises(FolderRefused, match=r"avatars\.folder"):
        LocalAvatars(tmp_path / "avatars", 10_000, DAY_S)


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_damaged_file_is_removed_and_can_be_made_again(
    avatars: LocalAvatars, tmp_path: Path, place: int
) -> None:
    avatars.write(ONE, "a.block", b"payload")
    path = tmp_path / "avatars" / ONE / "a.block"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert avatars.read(ONE, "a.block") is None
    assert avatars.names(ONE) == frozenset()
    assert avatars.write(ONE, "a.block", b"payload")
    assert avatars.read(ONE, "a.block") == b"payload"


def test_the_least_recently_used_avatar_loses_its_files_first(avatars: LocalAvatars) -> None:
    for avatar in (ONE, TWO, THREE):
        avatars.write(avatar, "a.block", bytes(1500))
        avatars.write(avatar, "b.block", bytes(1500))
    assert avatars.read(ONE, "a.block")  # now the second is the one that was not used longest
    assert avatars.write(THREE, "c.block", bytes(1500))
    assert kept(avatars) == {
        *{("1", "a.block"), ("1", "b.block"), ("2", "b.block")},
        *{("3", "a.block"), ("3", "b.block"), ("3", "c.block")},
    }


def test_an_avatar_beyond_the_budget_loses_its_oldest_blocks(avatars: LocalAvatars) -> None:
    avatars.write(ONE, "about", b"about")
    for name in "abcd":
        avatars.write(ONE, f"{name}.block", bytes(2800))
    assert kept(avatars) == {("1", "about"), *(("1", f"{name}.block") for name in "bcd")}
    assert not avatars.write(ONE, "e.block", bytes(20_000))  # it would not fit alone
    assert sum(file.size_bytes for file in avatars.files()) <= 10_000


def test_what_was_not_used_for_too_long_is_removed(avatars: LocalAvatars, clock: Clock) -> None:
    avatars.write(ONE, "a.block", b"old")
    avatars.write(TWO, "a.block", b"used")
    clock.now += 0.7 * DAY_S
    assert avatars.read(TWO, "a.block")
    clock.now += 0.7 * DAY_S
    avatars.sweep()
    assert kept(avatars) == {("2", "a.block")}


def test_what_killed_writers_left_is_removed(
    avatars: LocalAvatars, clock: Clock, tmp_path: Path
) -> None:
    avatars.write(ONE, "a.block", b"payload")
    part = tmp_path / "avatars" / ONE / ".b.block.0123456789ab.part"
    part.write_bytes(b"half")
    stranger = tmp_path / "avatars" / "notes.txt"
    stranger.write_text("mine")
    clock.now = part.stat().st_mtime + ABANDONED_S / 2
    avatars.sweep()
    assert part.exists()
    clock.now = part.stat().st_mtime + ABANDONED_S + 10
    avatars.sweep()
    assert not part.exists()
    assert stranger.exists()


def test_a_disk_that_refuses_a_file_costs_only_that_file(
    avatars: LocalAvatars, tmp_path: Path
) -> None:
    avatars.write(ONE, "a.block", b"payload")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert not avatars.write(ONE, "b.block", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "avatars" / ONE).iterdir()] == ["a.block"]
    assert avatars.read(ONE, "a.block") == b"payload"
    assert avatars.write(ONE, "b.block", bytes(5000))


def test_a_folder_that_was_removed_is_made_again(avatars: LocalAvatars, tmp_path: Path) -> None:
    (tmp_path / "avatars").rmdir()
    assert avatars.read(ONE, "a.block") is None
    avatars.sweep()
    assert avatars.write(ONE, "a.block", b"payload")
    assert avatars.read(ONE, "a.block") == b"payload"


def _write_many(folder: Path, number: int, ready: object) -> None:
    """Write and read in a process of its own, with files of the same names as the others."""
    avatars = LocalAvatars(folder, 60_000, DAY_S, first_to_go=".block")
    ready.wait()  # type: ignore[attr-defined]
    for turn in range(40):
        name = f"{turn % 5}.block"
        payload = bytes([turn % 5]) * 3000
        avatars.write(ONE if number % 2 else TWO, name, payload)
        for avatar in (ONE, TWO):
            found = avatars.read(avatar, name)
            assert found is None or found == payload


def test_many_processes_share_the_folder_within_the_budget(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(4)
    folder = tmp_path / "avatars"
    workers = [context.Process(target=_write_many, args=(folder, n, ready)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    avatars = LocalAvatars(folder, 12_000, DAY_S, first_to_go=".block")
    assert {avatars.read(file.avatar_id, file.name) is None for file in avatars.files()} == {False}
    avatars.sweep()
    assert sum(file.size_bytes for file in avatars.files()) <= 12_000


def test_deleting_removes_an_avatar_while_others_read_it(avatars: LocalAvatars) -> None:
    stop = threading.Event()

    def read() -> set[bytes | None]:
        seen = set()
        while not stop.is_set():
            seen.add(avatars.read(ONE, "a.block"))
        return seen

    avatars.write(TWO, "a.block", b"other")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for _ in range(50):
            avatars.write(ONE, "a.block", b"payload")
            assert avatars.delete(ONE)
        stop.set()
        assert reading.result() <= {b"payload", None}
    assert not avatars.delete(ONE)
    assert kept(avatars) == {("2", "a.block")}


def test_a_survey_is_found_for_frames_that_it_is_valid_for(avatars: LocalAvatars) -> None:
    surveys, fps = StoredSurveys(avatars, ONE), Fraction(30000, 1001)
    assert surveys.find(100, fps, is_exact=False) is None
    found = Survey((Box(1, 2, 3, 4),), ("Two faces were seen.",))
    surveys.keep(100, fps, found)
    assert surveys.find(100, fps, is_exact=True) == found
    assert surveys.find(120, fps, is_exact=True) is None
    assert surveys.find(120, fps, is_exact=False) == found
    assert surveys.find(90, fps, is_exact=False) is None
    assert StoredSurveys(avatars, TWO).find(100, fps, is_exact=True) is None
    span = Span(3, 9, (3, 8), (Box(1, 2, 3, 4), Box(2, 2, 4, 4)))
    followed = Survey((), ("The chosen person was found.",), Track((span, span)))
    surveys.keep(50, fps, followed)
    assert surveys.find_longer(50, fps) == surveys.find_longer(20, fps) == followed
    assert surveys.find_longer(51, fps) == found and surveys.find_longer(101, fps) is None
    assert surveys.find_longer(20, Fraction(25)) is None
