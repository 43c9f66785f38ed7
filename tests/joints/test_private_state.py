"""What the worker keeps on disk is readable by its user only, whatever the umask. Mend 4.7."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import ClaimedJob, FinalReport
from serve_app.config.environment import Environment
from serve_app.config.folders import make_folders
from serve_app.config.settings import AppArgs
from serve_app.contract.requests import JobRequest
from serve_app.fleet.claim_journal import ClaimJournal, HeldJob
from serve_app.fleet.identity import kept_id
from serve_app.fleet.outbox import Outbox
from serve_app.jobs.job import Origin
from serve_app.jobs.registry import JobRegistry


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    args = AppArgs(
        pools=[{"name": "cpu"}],
        work_dir=tmp_path / "work",
        result_dir=tmp_path / "results",
        state_dir=tmp_path / "state",
    )
    return make_folders(args, Environment()).state


async def test_registry_reports_and_claims_are_private(state):
    job = JobRequest(musetalk_job_id="a", video_url="https://h/v?sig=x", audio_url="https://h/a")
    registry = JobRegistry(state / "jobs.sqlite3")
    registry.submit(job, Origin.ASYNC, 10)
    await Outbox(state / "outbox").put(FinalReport("a", "/p", "{}"))
    journals = [ClaimJournal(state / "claims", "worker") for _ in range(2)]
    assert [journal.acquire() for journal in journals] == [True, False]
    await journals[0].start(HeldJob(ClaimedJob("a", {"video_url": "https://h/v?sig=x"})))
    kept_id(state)
    files = [path for path in state.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".sqlite3", ".sqlite3-wal", ".json", ".held", ".lock", ".wanted", ""} <= kinds
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {
        path.name: "0o600" for path in files
    }
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    registry.close()
