"""A worker that is told to stop begins no job any more, also where it was just about to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from serve_app.config.environment import read_environment
from serve_app.jobs.job import Origin
from tests.joints.job_door import job_door, request


class Claims:
    """The orchestrator's side; counts how often a job was asked for."""

    asked = 0

    async def claim_and_run(self) -> bool:
        self.asked += 1
        return False


async def test_no_job_begins_when_the_end_is_asked_for_while_readiness_is_looked_up(
    tmp_path: Path,
) -> None:
    async with job_door(tmp_path) as rig:
        door, claims = rig.door, Claims()

        async def is_ready() -> bool:
            door._is_stopping = True
            return True

        door._readiness = SimpleNamespace(is_ready=is_ready)  # type: ignore[assignment]
        door._polling = claims  # type: ignore[assignment]
        door._pushed, door._n_slots = None, 1
        await rig.service.submit(request("a"), Origin.ASYNC)
        assert not await door._do_next(0)
        job = await rig.service.get("a")
    assert job is not None and job.status == "queued"
    assert (rig.graph.ran, claims.asked) == ([], 0)


async def test_claims_are_not_tried_again_while_this_worker_stops(tmp_path: Path) -> None:
    """An orchestrator that does not answer is asked four times, over more than a minute."""
    async with job_door(tmp_path) as rig:
        door = rig.door

        async def is_ready() -> bool:
            return True

        door._readiness = SimpleNamespace(is_ready=is_ready)  # type: ignore[assignment]
        door._n_slots = 1
        door._env = read_environment(
            {
                "ORCHESTRATOR_BASE_URL": "http://127.0.0.1:9",
                "INTERNAL_API_KEY": "key",
                "WORKER_TYPE": "main",
            }
        )
        polling = door._make_polling(SimpleNamespace(state=tmp_path))  # type: ignore[arg-type]
        assert polling is not None and await polling._can_run()
        door._is_stopping = True
        assert not await polling._can_run()
