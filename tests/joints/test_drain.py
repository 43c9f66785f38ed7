"""A worker that is told to stop begins no job any more, also where it was just about to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from serve_app.api.job_runner import JobRunner
from serve_app.api.services import Services
from serve_app.jobs.job import Origin
from tests.joints.job_door import Door, Stages, job_door, request


class Checked(Stages):
    """Calls `on_check` whenever readiness is checked."""

    on_check: Callable[[], None]

    async def is_ready(self) -> bool:
        self.on_check()
        return True


def stop(services: Services) -> None:
    services.availability.is_stopping = True


async def no_call(slot: int) -> None:
    """Stands for the calls of the slots: none comes."""


class Claims:
    """The orchestrator's side; counts how often a job was asked for."""

    asked = 0

    async def claim_and_run(self) -> bool:
        self.asked += 1
        return False


async def test_no_job_begins_when_the_end_is_asked_for_while_readiness_is_looked_up(
    tmp_path: Path,
) -> None:
    stages = Checked()
    async with job_door(tmp_path, stages=stages) as rig:
        claims = Claims()
        rig.door.change(polling=claims)
        stages.on_check = partial(stop, rig.door.services)
        await rig.service.submit(request("a"), Origin.ASYNC)
        assert not await JobRunner(rig.door.services, no_call).do_next(0)
        job = await rig.service.get("a")
    assert job is not None and job.status == "queued"
    assert (rig.graph.ran, claims.asked) == ([], 0)


async def test_claims_are_not_tried_again_while_this_worker_stops(tmp_path: Path) -> None:
    """An orchestrator that does not answer is asked four times, over more than a minute."""
    environment = {
        "ORCHESTRATOR_BASE_URL": "http://127.0.0.1:9",
        "INTERNAL_API_KEY": "key",
        "WORKER_TYPE": "main",
        "ALLOW_LOCAL_STORE": "true",
    }
    door = Door(tmp_path, **environment)
    polling = door.services.polling
    assert polling is not None and await polling._can_run()
    door.services.availability.is_stopping = True
    assert not await polling._can_run()
    door.registry.close()
