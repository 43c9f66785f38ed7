"""A job's segments go through the scheduler: order, bounds, choice of pools, tries, pieces."""

import asyncio

import pytest

from musetalk_pipeline.artifacts import frame_bytes
from musetalk_pipeline.errors import InvalidVideo, PipelineError, StageFailed
from musetalk_pipeline.options import JobOptions
from serve_app.config.settings import DriverSettings
from serve_app.scheduling.scheduler import NoReplicaRuns
from serve_app.streams.streams import Streams
from tests.unit.stage_rig import PICTURE, Stages, running, settle, until


def covers_all(stages: Stages) -> bool:
    """Return whether the joined pieces have every frame once, in order."""
    starts = [start for start, _ in stages.finished]
    ends = [end for _, end in stages.finished]
    return starts == [0, *ends[:-1]] and ends[-1] == stages.frames


async def test_every_frame_is_joined_once_and_in_order(tmp_path):
    stages = Stages(tmp_path)
    stages.capacity.follow(running(cpu=3))
    await stages.start()
    assert covers_all(stages)
    assert not list((tmp_path / "scratch").iterdir())  # the pieces are gone with the attempt


async def test_a_call_is_sent_when_its_inputs_exist(tmp_path):
    """A call that waits for its inputs in a replica would keep others from drawing there."""
    stages = Stages(tmp_path, frames=50)
    stages.capacity.follow(running(cpu=2))
    for held, sent in (("prepare", "encode"), ("encode", "generate"), ("encode_audio", "generate")):
        stages.holds, stages.go_on = {held}, asyncio.Event()
        stages.made.clear()
        job = stages.start()
        await until(lambda: stages.at_once[held] == 1)  # noqa: B023
        await settle()
        assert not stages.of(sent)
        stages.go_on.set()
        await job
        assert stages.of(sent)


async def test_generators_get_as_many_calls_as_replicas_run(tmp_path):
    stages = Stages(tmp_path)
    stages.capacity.follow(running(cpu=2))
    stages.holds = {"generate", "encode"}
    job = stages.start()
    await until(lambda: stages.at_once["encode"] + stages.at_once["generate"] == 2)
    await settle()
    assert stages.at_once["encode"] + stages.at_once["generate"] == 2
    stages.capacity.follow(running(cpu=5))
    await until(lambda: stages.at_once["encode"] + stages.at_once["generate"] == 5)
    stages.go_on.set()
    await job
    assert covers_all(stages)


async def test_segments_in_flight_follow_the_replicas_that_run(tmp_path):
    """Two for each Generator replica, and what the threads of the other stages work on."""
    stages = Stages(tmp_path, frames=5000)
    stages.capacity.follow(running(cpu=3))
    stages.holds = {"generate"}
    job = stages.start()
    await until(lambda: stages.at_once["generate"] == 3)
    await settle()
    assert stages.capacity.segments.inside == 2 * 3 + 2 + 2
    assert len(stages.of("prepare")) <= 10
    stages.go_on.set()
    await job


async def test_segments_in_flight_are_bounded_in_bytes(tmp_path):
    one = frame_bytes("warp", PICTURE, JobOptions().encode)
    mb = -(-3 * 50 * one // 1_000_000)  # three segments of 50 frames
    stages = Stages(tmp_path, frames=5000, driver=DriverSettings(max_mb_in_flight=mb))
    stages.capacity.follow(running(cpu=8))
    stages.holds = {"generate"}
    job = stages.start()
    await until(lambda: stages.at_once["generate"] == 3)
    await settle()
    assert stages.capacity.segments.inside == 3
    stages.go_on.set()
    await job


async def test_short_jobs_draw_on_all_replicas_at_once(tmp_path):
    """Finding 8: two jobs ran at a time, so 16 short ones took eight times too long on 8."""
    stages = Stages(tmp_path, frames=50)
    stages.capacity.follow(running(cpu=8))
    stages.holds = {"generate"}
    jobs = [stages.start(f"{number}") for number in range(16)]
    await until(lambda: stages.at_once["generate"] == 8)
    stages.go_on.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*jobs)
    assert stages.most_at_once["generate"] == 8


async def test_a_job_that_begins_does_not_wait_for_those_that_fill_the_graph(tmp_path):
    """Finding 8: a job of 2 s behind two of 60 s waited until one of them had ended."""
    stages = Stages(tmp_path, frames=5000)
    stages.capacity.follow(running(cpu=1))
    stages.holds = {"generate"}
    long = [stages.start("a"), stages.start("b")]
    await until(lambda: stages.at_once["generate"] == 1)
    await settle()
    assert {frame for _, frame in stages.of("generate")} == {0}
    stages.frames = 50
    short = stages.start("c")
    await settle()
    before = len(stages.of("generate"))
    stages.holds.clear()
    stages.go_on.set()
    await short
    # One segment of every other job may come before its own.
    firsts = [n for n, (_, frame) in enumerate(stages.of("generate")) if frame == 0]
    assert firsts[2] - before <= 2
    for job in long:
        job.cancel()
    await asyncio.wait(long)


async def test_the_last_segments_are_cut_so_that_all_replicas_have_work(tmp_path):
    stages = Stages(tmp_path, frames=500)  # ten segments for eight replicas
    stages.capacity.follow(running(cpu=8))
    await stages.start()
    assert covers_all(stages)
    lengths = [end - start for start, end in stages.finished]
    assert lengths[:3] == [50, 50, 50]
    assert max(lengths[-8:]) <= 16


async def test_a_job_is_not_cut_while_others_have_work(tmp_path):
    stages = Stages(tmp_path, frames=500)
    stages.capacity.follow(running(cpu=2))
    stages.holds = {"generate"}
    jobs = [stages.start(name) for name in "ab"]
    await until(lambda: stages.at_once["generate"] == 2)
    await settle()
    assert all(frame % 50 == 0 for _, frame in stages.of("encode_audio"))
    stages.go_on.set()
    await asyncio.wait(jobs)


async def test_the_first_piece_of_a_job_that_can_be_watched_is_short(tmp_path):
    """It is there sooner, whatever becomes of the stream itself."""
    streams = Streams(tmp_path, 60.0, 1e9)
    for frames, first in ((500, 12), (50, 50)):  # one segment is made as a whole
        stages = Stages(tmp_path, frames=frames, streams=streams)
        stages.capacity.follow(running(cpu=1))
        await stages.start()
        assert covers_all(stages)
        assert stages.finished[0] == (0, first)


async def test_a_segment_that_fails_is_made_in_another_pool_at_once(tmp_path):
    stages = Stages(tmp_path, pools=("bad", "good"), frames=50)
    stages.capacity.follow(running(bad=1, good=1))

    def broken(name: str, pool: str) -> None:
        if name == "generate" and pool == "bad":
            raise StageFailed("The replica was lost.")

    stages.trouble = broken
    await stages.start()
    assert stages.finished == [(0, 50)]
    assert {pool for pool, _ in stages.of("generate")[1:]} <= {"good"}
    assert len(stages.of("generate")) <= 2


async def test_a_pool_that_is_gone_gives_its_segments_to_another(tmp_path):
    """A call to a node that is gone, or stopped, would be answered only by its deadline."""
    stages = Stages(tmp_path, pools=("lost", "other"), frames=50)
    stages.capacity.follow(running(lost=1, other=0))
    stages.holds = {"generate"}
    job = stages.start()
    await until(lambda: stages.of("generate") == [("lost", 0)])
    await settle()  # it is held a moment after it has begun
    stages.holds.clear()
    stages.capacity.follow(running(lost=0, other=1))
    await job
    assert stages.of("generate") == [("lost", 0), ("other", 0)]
    assert stages.of("encode") == [("lost", 0), ("other", 0)]  # the block went with the pool


async def test_without_replicas_a_job_waits_and_then_fails_with_the_reason(tmp_path):
    """Finding 2: jobs failed because a pool without a node was the cheapest."""
    settings = DriverSettings(no_replica_timeout_s=0.05)
    stages = Stages(tmp_path, pools=("ada",), driver=settings)
    with pytest.raises(NoReplicaRuns, match=r"for 0\.05 s \(pool ada: no replica is running\)"):
        await stages.start()
    assert not stages.of("encode")


async def test_a_pool_that_comes_in_time_draws_what_waits(tmp_path):
    stages = Stages(tmp_path, pools=("ada",), frames=100)
    job = stages.start()
    await until(lambda: len(stages.of("prepare")) > 0)
    await settle()
    assert not stages.of("encode")
    assert stages.capacity.scheduler.frames_waiting() == 100 + 50  # a block counts half
    stages.capacity.follow(running(ada=1))
    await job
    assert covers_all(stages)
    assert stages.capacity.scheduler.frames_waiting() == 0


async def test_speeds_are_learned_from_what_calls_took(tmp_path):
    stages = Stages(tmp_path, pools=("slow", "fast"), frames=1000)
    stages.seconds_per_frame = {"slow": 0.04, "fast": 0.01}
    stages.capacity.follow(running(slow=1, fast=1))
    await stages.start()
    scheduler = stages.capacity.scheduler
    assert scheduler.speed("slow") == pytest.approx(25.0)
    assert scheduler.speed("fast") == pytest.approx(100.0)


async def test_a_fault_of_the_input_ends_the_job_and_its_calls(tmp_path):
    stages = Stages(tmp_path, frames=5000)
    stages.capacity.follow(running(cpu=2))

    def refuse(name: str, pool: str) -> None:
        if name == "compose":
            raise InvalidVideo("Frame 3 shows no face.")

    stages.trouble = refuse
    with pytest.raises(InvalidVideo):
        await stages.start()
    await settle()
    assert not +stages.at_once
    capacity = stages.capacity
    assert (capacity.segments.inside, capacity.prepare.inside, capacity.compose.inside) == (0, 0, 0)
    assert not capacity.scheduler.calls_in_flight()["cpu"]
    assert capacity.scheduler.frames_waiting() == 0


async def test_a_failure_that_lasts_ends_the_job_after_its_tries(tmp_path):
    stages = Stages(tmp_path, frames=50, driver=DriverSettings(tries=3))
    stages.capacity.follow(running(cpu=1))

    def broken(name: str, pool: str) -> None:
        if name == "encode":
            raise StageFailed("Out of memory.")

    stages.trouble = broken
    with pytest.raises(PipelineError, match="Out of memory"):
        await stages.start()
    assert len(stages.of("encode")) == 3


@pytest.mark.parametrize("held", ["prepare", "encode_audio", "encode", "generate", "compose"])
async def test_a_job_that_is_cancelled_leaves_no_call_and_no_place(tmp_path, held):
    stages = Stages(tmp_path, frames=1000)
    stages.capacity.follow(running(cpu=2))
    stages.holds = {held}
    job = stages.start()
    await until(lambda: stages.at_once[held] > 0)
    await settle()
    job.cancel()
    await asyncio.wait({job})
    await settle()
    assert job.cancelled()
    assert not +stages.at_once
    capacity = stages.capacity
    assert (capacity.segments.inside, capacity.prepare.inside, capacity.compose.inside) == (0, 0, 0)
    assert not capacity.scheduler.calls_in_flight()["cpu"]


async def test_blocks_that_several_segments_draw_on_are_encoded_once(tmp_path):
    stages = Stages(tmp_path, frames=400, source=100)  # to and fro in two blocks
    stages.capacity.follow(running(cpu=2))
    await stages.start()
    assert covers_all(stages)
    assert len(stages.of("encode")) == 2


async def test_what_lies_between_spans_needs_no_engine(tmp_path):
    """It is encoded as it is, and again if that fails."""
    stages = Stages(tmp_path, frames=250, source=250, drawn=(range(60, 110), range(200, 220)))
    stages.capacity.follow(running(cpu=1))
    failed: list[str] = []

    def trouble(name: str, pool: str) -> None:
        if name == "compose_source" and not failed:
            failed.append(name)
            raise StageFailed("The encoder crashed.")

    stages.trouble = trouble
    await stages.start()
    assert [start for start, _ in stages.finished] == [0, 50, 60, 100, 110, 150, 200, 220]
    assert sum(end - start for start, end in stages.finished) == 250
    for name in ("prepare", "encode_audio", "generate", "compose"):
        assert sorted(frame for _, frame in stages.of(name)) == [60, 100, 200]
    passed = [frame for _, frame in stages.of("compose_source")]
    assert failed and sorted(set(passed)) == [0, 50, 110, 150, 220] and len(passed) == 6
