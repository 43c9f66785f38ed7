"""Our worker says what its predecessor said: same paths, keys and kinds of values (issue 10)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.errors import DownloadFailed
from serve_app.contract.outcomes import Outcome, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.fleet.system_info import collect_system_info
from tests.contract.exchange import RECORDED, Worker, assert_like_the_predecessor, recorded, shape
from tests.contract.fake_orchestrator import FakeOrchestrator
from tests.contract.worker_rig import OPTIONS, Desk, ProgressCallback, worker_rig


async def phases(on_progress: ProgressCallback) -> None:
    """Go through a job's phases; the reporter sees to it that each of them is sent."""
    on_progress(Progress(Phase.DOWNLOADING, 0.0))
    on_progress(Progress(Phase.INFERRING, 0.05, 0, 125))
    on_progress(Progress(Phase.INFERRING, 0.4, 50, 125))
    on_progress(Progress(Phase.ENCODING, 0.9, 125, 125))
    on_progress(Progress(Phase.UPLOADING, 0.95, 125, 125))


def busy(fake: FakeOrchestrator) -> Callable[[], bool]:
    seen = len(fake.of("heartbeat"))
    return lambda: any(c.body["status"] == "busy" for c in fake.of("heartbeat")[seen:])


@pytest.mark.parametrize(("worker", "worker_id"), [("main", "machine-7"), ("buffer", "shelf-1")])
async def test_what_we_say_is_what_the_predecessor_said(
    fake: FakeOrchestrator, tmp_path: Path, worker: Worker, worker_id: str
) -> None:
    """Mends 1.5, 1.6 and 1.7: and the orchestrator's recorded answers are understood."""
    claimed: dict[str, Any] = recorded(worker, "claim")["answer"]["job"]
    end = recorded(worker, "final succeeded")["body"]
    is_good = True

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await asyncio.to_thread(fake.wait_until, busy(fake))
        await phases(on_progress)
        if not is_good:
            raise DownloadFailed("Download failed: 404 Not Found")
        return Success(end["output_url"], end["metrics"])

    async with worker_rig(
        fake,
        tmp_path,
        desk=Desk(job),
        is_buffer=worker == "buffer",
        is_beating=True,
        worker_id=worker_id,
        system_info=collect_system_info(tmp_path).as_fields(),
        options=replace(OPTIONS, config_label="default"),
    ) as rig:
        await rig.until(lambda: bool(fake.of("heartbeat")))
        key = fake.add_job(claimed["musetalk_job_id"], **claimed)
        assert await rig.worker.claim_and_run()
        request = rig.desk.ran[0].model_dump()
        assert {name: request[name] for name in claimed if name in request} == {
            name: value for name, value in claimed.items() if name != "buffer_job_id"
        }
        is_good = False
        fake.jobs[key].accepted.clear()
        fake.hand_out_again(key)
        assert await rig.worker.claim_and_run()
    assert fake.violations == []
    assert_like_the_predecessor(worker, fake.calls)
    told = [report["phase"] for report in fake.jobs[key].progress]
    calls = [entry["call"].split() for entry in RECORDED[worker]]
    order = [phase for kind, *rest in calls for phase in rest if kind == "progress"]
    assert [phase for phase in dict.fromkeys(told) if phase in order] == order


def test_the_comparison_can_fail() -> None:
    """A renamed key, a lost one, and a number that became text are all seen."""
    same = shape({"a": 1, "b": {"c": None}})
    for other in ({"a": 1, "b": {"d": None}}, {"a": 1}, {"a": "1", "b": {"c": None}}):
        assert shape(other) != same
