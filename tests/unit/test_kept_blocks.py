"""Jobs that share the blocks of an avatar: each block is made once, and no job waits in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.artifacts import ColourTags, Picture, SourceVideo, SpeechAudio
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import Block, plan_frames
from musetalk_pipeline.stages import OpenJob
from serve_app.graph.kept_blocks import BlocksInMaking, JobAvatar
from serve_app.graph.transfers import Attempt, KnownAvatar, Opened, Sources, length_of

SOURCE = SourceVideo(Path("v"), "aa", 1000, 640, 480, Fraction(25), 80, 3.2, ColourTags())
AUDIO = SpeechAudio(Path("p"), Path("t"), "bb", 1000, 51_200, 3.2)
PICTURE = Picture(640, 480, 640, 480, 0, 0, None, ColourTags())
PLAN = plan_frames(80, 80, Fraction(25), 0.2)
FIRST, SECOND = PLAN.blocks[:2]


def opened(*stored: int, avatar_id: str | None = "a" * 32) -> Opened:
    attempt = Attempt("0" * 32, "job", JobOptions(), Sources("v", "a"), None, None, None)
    job = OpenJob(SOURCE, AUDIO, PICTURE, PLAN, JobOptions())
    avatar = None if avatar_id is None else KnownAvatar(avatar_id, dict.fromkeys(stored, "a file"))
    return Opened(attempt, "node", job, avatar)


@dataclass
class Disk:
    """Blocks that are kept, by the index; `may_store` holds every store back."""

    kept: dict[int, str] = field(default_factory=dict)
    loads: list[int] = field(default_factory=list)
    may_store: asyncio.Event = field(default_factory=asyncio.Event)
    refuses: bool = False

    async def load(self, block: Block) -> str | None:
        self.loads.append(block.index)
        return self.kept.get(block.index)

    async def store(self, avatar: str) -> bool:
        await self.may_store.wait()
        if self.refuses:
            return False
        self.kept[int(avatar)] = f"kept {avatar}"
        return True


def job(disk: Disk, in_making: BlocksInMaking, *stored: int, **more: Any) -> JobAvatar:
    return JobAvatar(opened(*stored, **more), in_making, disk.load, disk.store)


async def block_of(
    avatar: JobAvatar, block: Block, made: list[int], go_on: Callable[[], Any] = lambda: None
) -> str:
    """Load or make a block, as a job does."""
    found = await avatar.find(block)
    if found is not None:
        return str(found)
    async with avatar.making(block) as keep:
        made.append(block.index)
        await asyncio.sleep(0)
        go_on()
        keep(str(block.index))
    return f"made {block.index}"


async def test_a_kept_block_is_loaded_and_others_are_made() -> None:
    disk, made = Disk({0: "kept 0"}), list[int]()
    avatar = job(disk, BlocksInMaking(), 0)
    assert await block_of(avatar, FIRST, made) == "kept 0"
    assert await block_of(avatar, SECOND, made) == "made 1"
    assert (made, disk.loads) == ([1], [0])


async def test_two_jobs_at_once_make_a_block_once() -> None:
    disk, in_making, made = Disk(), BlocksInMaking(), list[int]()
    first, second = job(disk, in_making), job(disk, in_making)
    both = asyncio.gather(block_of(first, FIRST, made), block_of(second, FIRST, made))
    disk.may_store.set()
    assert await both == ["made 0", "kept 0"]
    assert made == [0]


async def test_other_avatars_and_other_blocks_wait_for_nothing() -> None:
    disk, in_making, made = Disk(), BlocksInMaking(), list[int]()
    first, other = job(disk, in_making), job(disk, in_making, avatar_id="b" * 32)
    assert await block_of(first, FIRST, made) == "made 0"  # and its store is held back
    assert await block_of(other, FIRST, made) == "made 0"
    assert await block_of(job(disk, in_making), SECOND, made) == "made 1"
    disk.may_store.set()


async def test_a_job_that_fails_leaves_its_block_to_the_one_that_waits() -> None:
    disk, in_making, made = Disk(), BlocksInMaking(), list[int]()

    def fail() -> None:
        raise RuntimeError("the replica is lost")

    failing = block_of(job(disk, in_making), FIRST, made, fail)
    results = await asyncio.gather(
        failing, block_of(job(disk, in_making), FIRST, made), return_exceptions=True
    )
    assert isinstance(results[0], RuntimeError)
    assert results[1] == "made 0"
    disk.may_store.set()


async def test_a_cancelled_job_leaves_its_block_too() -> None:
    disk, in_making, made = Disk(), BlocksInMaking(), list[int]()
    begun = asyncio.Event()

    async def make_for_ever() -> None:
        async with job(disk, in_making).making(FIRST):
            begun.set()
            await asyncio.Event().wait()

    making = asyncio.create_task(make_for_ever())
    await begun.wait()
    waiting = asyncio.create_task(block_of(job(disk, in_making), FIRST, made))
    making.cancel()
    assert await waiting == "made 0"
    disk.may_store.set()


async def test_a_block_that_cannot_be_stored_is_made_by_each_job() -> None:
    disk, in_making, made = Disk(refuses=True), BlocksInMaking(), list[int]()
    disk.may_store.set()
    jobs = [block_of(job(disk, in_making), FIRST, made) for _ in range(2)]
    assert await asyncio.gather(*jobs) == ["made 0", "made 0"]


async def test_a_block_that_is_gone_or_damaged_is_made_again_and_kept() -> None:
    disk, in_making, made = Disk(), BlocksInMaking(), list[int]()
    disk.may_store.set()
    avatar = job(disk, in_making, 0)
    assert await block_of(avatar, FIRST, made) == "made 0"
    assert await block_of(job(disk, in_making), FIRST, made) == "kept 0"
    assert made == [0]


async def test_a_load_that_fails_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(block: Block) -> None:
        raise RuntimeError("the replica is lost")

    disk, made = Disk(), list[int]()
    disk.may_store.set()
    avatar = JobAvatar(opened(0), BlocksInMaking(), fail, disk.store)
    assert await block_of(avatar, FIRST, made) == "made 0"
    assert "a kept block is not loaded" in caplog.text


async def test_without_a_cache_every_job_makes_its_blocks() -> None:
    disk, in_making, made = Disk(), BlocksInMaking(), list[int]()
    jobs = [job(disk, in_making, avatar_id=None) for _ in range(2)]
    assert await asyncio.gather(*(block_of(each, FIRST, made) for each in jobs)) == [
        "made 0",
        "made 0",
    ]
    assert disk.loads == []


def test_the_length_of_an_opened_job_tells_kept_blocks_from_those_that_are_prepared() -> None:
    """The first and the last of its 16 blocks of five frames are kept."""
    length = length_of(opened(0, 15))
    assert (length.frames, length.first_frames, length.pixels) == (80, 5, 640 * 480)
    assert (length.prepared, length.kept, length.to_draw, length.drawn) == (70, 10, 80, 80)
    assert not length.has_avatar and length_of(opened(*range(9))).has_avatar
    assert length_of(replace(opened(), drawn=33)).drawn == 33
    assert length_of(opened(avatar_id=None)).kept == 0


def test_a_job_that_makes_an_avatar_neither_draws_nor_encodes_frames() -> None:
    job = opened()
    length = length_of(replace(job, attempt=replace(job.attempt, is_avatar=True)))
    assert (length.prepared, length.to_draw, length.drawn, length.composed) == (80, 0, 0, 0)
