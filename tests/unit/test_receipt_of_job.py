"""What the receipt of a job says of its segments: who drew them, who lost one, who waited."""

from __future__ import annotations

import asyncio
from pathlib import Path

from musetalk_pipeline.receipts.receipt import NO_PRICES, Receipt, receipt_of
from tests.unit.stage_rig import Stages, running, settle, until


def receipt(stages: Stages) -> Receipt:
    """Return the receipt of the job that was finished last."""
    assert stages.work is not None
    return receipt_of(stages.work, NO_PRICES, finished_s=stages.frames / 25, wall_s=1.0)


async def test_every_frame_is_in_the_receipt_of_its_pool(tmp_path: Path) -> None:
    stages = Stages(tmp_path, pools=("ada", "ampere"))
    stages.capacity.follow(running(ada=2, ampere=1))
    await stages.start()
    made = receipt(stages)
    assert made.frames == sum(made.frames_by_class.values()) == stages.frames
    drawn = {pool: 0 for pool, _ in stages.of("generate")}
    assert set(made.frames_by_class) == {pool.upper() for pool in drawn}
    assert (made.work.retried_segments, made.work.retried_frames) == (0, 0)
    assert made.model_share == 1.0  # these engines say nothing of idleness
    assert made.work.blocks_made == len(stages.of("encode"))


async def test_a_lost_try_is_paid_for_and_its_frames_are_finished_once(tmp_path: Path) -> None:
    stages = Stages(tmp_path, pools=("lost", "other"), frames=50)
    stages.capacity.follow(running(lost=1, other=0))
    stages.holds = {"generate"}
    job = stages.start()
    await until(lambda: stages.of("generate") == [("lost", 0)])
    await settle()  # it is held a moment after it has begun
    stages.holds.clear()
    stages.capacity.follow(running(lost=0, other=1))
    await job
    made = receipt(stages)
    assert made.frames_by_class == {"OTHER": 50}
    lost, other = made.work.pools
    assert (lost.pool, lost.frames, lost.work_s) == ("lost", 0, 0.0)
    assert lost.lost_s > 0.0 == other.lost_s
    assert (made.work.retried_segments, made.work.retried_frames) == (1, 50)
    assert made.model_share is not None and 0.0 < made.model_share < 1.0


async def test_the_wait_for_a_replica_is_in_the_receipt(tmp_path: Path) -> None:
    stages = Stages(tmp_path, frames=50)
    job = stages.start()  # no replica runs yet
    await until(lambda: stages.capacity.scheduler.calls_waiting == 1)
    assert stages.capacity.scheduler.calls_in_flight() == {"cpu": 0}
    stages.holds = {"generate"}
    stages.capacity.follow(running(cpu=1))
    await until(lambda: stages.of("generate") == [("cpu", 0)])
    assert stages.capacity.scheduler.calls_waiting == 0
    assert stages.capacity.scheduler.calls_in_flight() == {"cpu": 1}
    stages.go_on.set()
    async with asyncio.timeout(30):
        await job
    assert receipt(stages).work.waiting_s["queue"] > 0.0
