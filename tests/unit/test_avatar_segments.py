"""Whole jobs whose avatar is kept: what is loaded, what is made, and jobs that only make it."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.artifacts import ColourTags, Picture, SourceVideo, SpeechAudio
from musetalk_pipeline.cost import Measured, StageCost
from musetalk_pipeline.errors import StageFailed, UploadFailed
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import Block, plan_frames
from musetalk_pipeline.stages import OpenJob
from serve_app.contract.requests import JobRequest
from serve_app.graph.transfers import Assignment, Attempt, KnownAvatar, Opened
from tests.unit.stage_rig import FPS, Stages, running

AVATAR_ID = "a" * 32
SOURCE = SourceVideo(Path("v"), "aa", 1000, 640, 480, Fraction(25), 1000, 40.0, ColourTags())
AUDIO = SpeechAudio(Path("p"), Path("t"), "bb", 1000, 51_200, 3.2)
PICTURE = Picture(640, 480, 640, 480, 0, 0, None, ColourTags())


class KeepingStages(Stages):
    """Stages that keep avatars. `kept`: the first frames of the blocks. `disk_is_full`: nothing
    more is kept.
    """

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__(folder, frames=200, **more)
        self.kept: set[int] = set()
        self.prepared: dict[str, int] = {}  # first frames of blocks, by the call that prepared them
        self.videos: list[str] = []
        self.disk_is_full = False
        self.capacity.follow(running(cpu=2))
        self.graph.preprocessor._methods |= {
            "load_avatar": self.load_avatar,
            "store_avatar": self.store_avatar,
            "keep_video": self.keep_video,
        }

    async def open(self, attempt: Attempt, fetched: Any) -> Measured[Opened]:
        plan = plan_frames(self.source, self.frames, FPS)
        if attempt.is_avatar:
            plan = plan.played_once()
        job = OpenJob(SOURCE, AUDIO, PICTURE, plan, attempt.options)
        stored = {block.index: "a file" for block in plan.blocks if block.start in self.kept}
        opened = Opened(attempt, "node", job, KnownAvatar(AVATAR_ID, stored))
        return Measured(opened, (StageCost("validation", 0.1, 0),))

    async def prepare(self, opened: Opened, block: Block) -> Any:
        costs = await super().prepare(opened, block)
        self.prepared[costs[0].call_id] = block.start
        return costs

    async def load_avatar(self, opened: Opened, block: Block) -> Any:
        await self._call("load_avatar", "", block.start)
        if block.start not in self.kept:
            return None
        loaded = asyncio.get_running_loop().create_future()
        loaded.set_result((StageCost("load", 0.1, len(block)),))
        return loaded

    async def store_avatar(self, opened: Opened, avatar: Any) -> bool:
        costs = await avatar
        await self._call("store_avatar", "", 0)
        if self.disk_is_full:
            return False
        self.kept.add(self.prepared[costs[0].call_id])
        return True

    async def keep_video(self, opened: Opened) -> bool:
        self.videos.append(opened.attempt.job_id)
        return not self.disk_is_full

    def start_avatar(self, job_id: str = "avatar") -> Any:
        """Begin a job without sound."""
        request = JobRequest(musetalk_job_id=job_id, video_url="https://h/v", audio_url="silence:")
        attempt_id = job_id.encode().hex().zfill(32)
        work = Assignment(attempt_id, None, job_id, 1, request, JobOptions())
        return asyncio.create_task(self.driver.run(work, lambda _: None))

    def count(self, name: str) -> int:
        return len(self.of(name))


@pytest.fixture
def stages(tmp_path: Path) -> KeepingStages:
    return KeepingStages(tmp_path)


async def test_a_second_job_makes_no_block(stages: KeepingStages) -> None:
    await stages.start("a")
    assert (stages.count("prepare"), stages.count("load_avatar")) == (4, 0)
    await asyncio.sleep(0)
    await stages.start("b")
    assert {stages.count(name) for name in ("prepare", "encode", "load_avatar")} == {4}
    assert stages.finished[-1][1] == 200


async def test_jobs_with_the_same_new_video_make_each_block_once(stages: KeepingStages) -> None:
    jobs = [stages.start(name) for name in "abcd"]
    await asyncio.gather(*jobs)
    assert (stages.count("prepare"), stages.count("encode")) == (4, 4)
    assert stages.finished[-1][1] == 200


async def test_blocks_that_are_gone_are_made_again(stages: KeepingStages) -> None:
    await stages.start("a")
    opened, stages.kept = stages.kept, set()

    async def open_as_before(attempt: Attempt, fetched: Any) -> Measured[Opened]:
        stages.kept = opened
        found = await stages.open(attempt, fetched)
        stages.kept = set()
        return found

    stages.graph.preprocessor._methods["open"] = open_as_before
    await stages.start("b")
    assert stages.count("prepare") == 8
    assert stages.finished[-1][1] == 200


async def test_a_block_whose_drawing_failed_is_loaded_again(stages: KeepingStages) -> None:
    await stages.start("a")
    failures = iter([True])

    def trouble(name: str, pool: str) -> None:
        if name == "generate" and next(failures, False):
            raise StageFailed("the replica is lost")

    stages.trouble = trouble
    await stages.start("b")
    assert (stages.count("prepare"), stages.count("load_avatar")) == (4, 5)


async def test_an_avatar_is_made_without_drawing(stages: KeepingStages) -> None:
    finished = await stages.start_avatar()
    assert finished.output_url == f"/v1/avatars/{AVATAR_ID}"
    assert finished.metrics["avatar_id"] == AVATAR_ID
    assert {stages.count(name) for name in ("prepare", "encode", "store_avatar")} == {4}
    assert {stages.count(name) for name in ("generate", "compose", "encode_audio")} == {0}
    assert stages.videos == ["avatar"]
    await stages.start("b")
    assert stages.count("prepare") == 4


async def test_making_an_avatar_again_loads_it_and_keeps_the_video(stages: KeepingStages) -> None:
    await stages.start("a")
    await stages.start_avatar()
    assert (stages.count("prepare"), stages.videos) == (4, ["avatar"])


async def test_a_block_of_an_avatar_that_fails_is_made_again(stages: KeepingStages) -> None:
    failures = iter([True])

    def trouble(name: str, pool: str) -> None:
        if name == "encode" and next(failures, False):
            raise StageFailed("the replica is lost")

    stages.trouble = trouble
    await stages.start_avatar()
    assert stages.count("prepare") == 5
    assert len(stages.kept) == 4


async def test_an_avatar_that_cannot_be_kept_has_failed(stages: KeepingStages) -> None:
    stages.disk_is_full = True
    with pytest.raises(UploadFailed, match="could be kept") as failed:
        await stages.start_avatar()
    assert "avatars" in str(failed.value.hint)
