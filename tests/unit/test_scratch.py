"""Scratch: who is trusted, what is removed, what survives cleaners. Mends 3.5, 3.7 and 4.7."""

import os
import stat
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from musetalk_pipeline.errors import StageFailed
from serve_app.config.environment import Environment
from serve_app.config.folders import default_work_dir, make_folders
from serve_app.config.settings import AppArgs
from serve_app.graph.scratch import Scratch
from serve_app.private_folders import FolderRefused, private_folder

STALE_S = 100.0


def args(**changes) -> AppArgs:
    return AppArgs.model_validate({"pools": [{"name": "cpu"}]} | changes)


def attempt_id() -> str:
    return uuid.uuid4().hex


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def scratch(root) -> Scratch:
    return Scratch(root, STALE_S)


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch) -> Path:
    """A folder for temporary files that everybody may write to, as /tmp is."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# --- whom to trust (4.7) --------------------------------------------------------------------------


def test_the_default_root_is_this_users_own(temporary_folder, tmp_path):
    folders = make_folders(
        args(result_dir=str(tmp_path / "r"), state_dir=str(tmp_path / "s")), Environment()
    )
    assert folders.scratch == temporary_folder / f"lipsync-serve-{os.geteuid()}" / "jobs"
    made = (folders.scratch, folders.scratch.parent, folders.results, folders.state)
    assert {mode(folder) for folder in made} == {0o700}


def test_a_folder_that_others_may_enter_is_closed(root):
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    Scratch(root, STALE_S)
    assert mode(root) == 0o700


@pytest.mark.parametrize("which", ["lipsync-serve-{uid}", "lipsync-serve-{uid}/jobs"])
def test_a_link_is_refused_and_not_followed(temporary_folder, tmp_path, which):
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    kept = victim / attempt_id()
    kept.mkdir()
    age(kept, 10 * STALE_S)
    link = temporary_folder / which.format(uid=os.geteuid())
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    with pytest.raises(FolderRefused, match=r"is a link.*MUSETALK_WORKDIR"):
        Scratch(default_work_dir() / "jobs", STALE_S)
    assert kept.exists() and mode(victim) == 0o755


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    foreign = Path("/usr")
    if os.geteuid() == 0:
        foreign = tmp_path / "foreign"
        foreign.mkdir(mode=0o777)
        os.chown(foreign, 12345, 12345)
    before = foreign.stat().st_mode
    with pytest.raises(FolderRefused, match=r"belongs to user \d+.*set work_dir"):
        private_folder(foreign, "work_dir")
    assert foreign.stat().st_mode == before


def test_a_file_in_the_way_is_refused(root):
    root.write_bytes(b"")
    with pytest.raises(FolderRefused):
        Scratch(root, STALE_S)


def test_only_folders_of_our_own_form_are_removed(scratch, root, tmp_path):
    stale, young = attempt_id(), attempt_id()
    scratch.folder(young)
    age(scratch.folder(stale), 2 * STALE_S)
    others = [root / "photos", root / stale.upper(), root / (stale + "0"), root / stale[:-1]]
    for other in others:
        other.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link, file = root / attempt_id(), root / attempt_id()
    link.symlink_to(elsewhere)
    file.write_bytes(b"")
    for path in (*others, elsewhere, file):
        age(path, 2 * STALE_S)
    scratch.sweep()
    left = {path.name for path in root.iterdir()}
    assert left == {young, link.name, file.name, *(other.name for other in others)}
    assert elsewhere.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "x" * 32, "ABCDEF" + "0" * 26])
def test_names_that_are_no_attempt_are_never_paths(scratch, name):
    with pytest.raises(ValueError):
        scratch.release(name)


def test_what_is_there_for_state_is_private(tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    wanted = args(
        work_dir=str(tmp_path / "w"), result_dir=str(tmp_path / "r"), state_dir=str(state)
    )
    make_folders(wanted, Environment())
    assert mode(state) == 0o700


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for setting in ("work_dir", "result_dir", "state_dir"):
        folders = {name: str(tmp_path / name) for name in ("work_dir", "result_dir", "state_dir")}
        folders[setting] = str(tmp_path / "file" / "below")
        with pytest.raises(FolderRefused, match=setting):
            make_folders(args(**folders), Environment())


# --- cleaners of temporary files (3.5) ------------------------------------------------------------


def test_a_root_that_was_removed_is_made_again_for_the_next_job(scratch, root):
    root.rmdir()
    folder = scratch.folder(attempt_id())
    assert folder.is_dir() and mode(root) == 0o700


def test_the_janitor_survives_a_root_that_is_gone_or_cannot_be_made(scratch, root):
    root.rmdir()
    scratch._sweep_or_log()
    assert mode(root) == 0o700
    root.rmdir()
    root.symlink_to("/nonexistent")
    scratch._sweep_or_log()
    root.unlink()
    stale = attempt_id()
    age(scratch.folder(stale), 2 * STALE_S)
    scratch._sweep_or_log()
    assert list(root.iterdir()) == []


def test_a_root_that_was_swapped_for_a_link_fails_the_job_and_not_the_victim(
    scratch, root, tmp_path
):
    victim = tmp_path / "victim"
    victim.mkdir()
    root.rmdir()
    for target in (victim, victim / "absent"):
        root.symlink_to(target)
        with pytest.raises(StageFailed, match="scratch folder"):
            scratch.folder(attempt_id())
        root.unlink()
    assert list(victim.iterdir()) == []


def test_the_janitor_shows_cleaners_that_the_root_is_in_use(temporary_folder):
    root = default_work_dir() / "jobs"
    scratch = Scratch(root, STALE_S)
    for folder in (root, root.parent):
        os.utime(folder, (0, 0))
    scratch.sweep()
    assert min(folder.stat().st_mtime for folder in (root, root.parent)) > 1e9


# --- live attempts (3.7) --------------------------------------------------------------------------


def test_an_attempt_that_says_so_lives(scratch, root):
    live = attempt_id()
    age(scratch.folder(live), 2 * STALE_S)
    assert scratch.touch(live)
    scratch.sweep()
    assert (root / live).exists()
    assert not scratch.touch(attempt_id())


@pytest.mark.parametrize(
    "longer",
    [
        {"inputs": {"download_timeout_s": 50_000}},
        {"driver": {"call_timeout_s": 50_000}},
        {"driver": {"finish_timeout_s": 50_000}},
        {"driver": {"seconds_per_frame": 500}},
        {"driver": {"tries": 10, "call_timeout_s": 5_000}},
        {"driver": {"no_replica_timeout_s": 50_000}},
        {"inputs": {"max_fps": 1000}},
    ],
)
def test_the_time_after_which_scratch_is_stale_follows_every_deadline(longer):
    assert args(**longer).longest_silence_s(2) > args().longest_silence_s(2) + 10_000


def test_the_time_covers_a_call_among_the_jobs_that_run():
    """As stage_calls.py allows it: a segment's frames, after one of each other job, each try."""
    driver = args().driver
    segment_s = driver.call_timeout_s + 2.0 * 120 * driver.seconds_per_frame
    assert args().longest_silence_s(4) >= driver.tries * segment_s * 4
