"""Blocks that come back when the ping-pong order returns to them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_pipeline.artifacts import AvatarBlock, Face
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.one_process.block_store import BlockStore
from musetalk_pipeline.plan import Block, FramePlan, plan_frames


def avatar(block: Block) -> AvatarBlock:
    face = Face(np.full((68, 2), block.index, np.float32), Box(0, 0, 10, 10), 0.9)
    look = np.full((len(block), 4), block.index, np.float32)
    return AvatarBlock(block, (face,) * len(block), look, np.zeros((len(block), 8), np.uint8))


def walk(plan: FramePlan, store: BlockStore) -> list[int]:
    """Go through all segments; return the blocks that had to be made."""
    made = []
    for segment in plan.segments:
        if store.has(segment.block, segment.index):
            block = store.take(segment.block)
        else:
            block = avatar(plan.blocks[segment.block])
            made.append(segment.block)
        assert block.block == plan.blocks[segment.block]
        np.testing.assert_array_equal(block.appearance, avatar(block.block).appearance)
        store.put_back(block)
    return made


def test_every_block_is_made_once_and_none_is_left(tmp_path: Path):
    plan = plan_frames(40, 200, Fraction(25), block_s=0.4)
    store = BlockStore(plan, tmp_path, in_memory=2)
    assert walk(plan, store) == [block.index for block in plan.blocks]
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_are_used_once_are_not_kept(tmp_path: Path):
    plan = plan_frames(40, 40, Fraction(25), block_s=0.4)
    store = BlockStore(plan, tmp_path, in_memory=1)
    assert walk(plan, store) == [block.index for block in plan.blocks]
    assert not store._recent


def test_what_exceeds_the_disk_is_made_again(tmp_path: Path):
    plan = plan_frames(40, 80, Fraction(25), block_s=0.4)  # four blocks of ten frames
    store = BlockStore(plan, tmp_path, in_memory=1, on_disk_frames=20)
    assert sorted(walk(plan, store)) == [0, 1, 2, 2, 3, 3]


@given(st.integers(1, 60), st.integers(1, 300), st.integers(0, 60))
def test_no_segment_ever_misses_its_block(n_source, n_output, on_disk):
    import tempfile

    plan = plan_frames(n_source, n_output, Fraction(25), block_s=0.2)
    with tempfile.TemporaryDirectory() as folder:
        walk(plan, BlockStore(plan, Path(folder), in_memory=1, on_disk_frames=on_disk))
        assert not list(Path(folder).iterdir())


def test_memory_holds_no_more_than_it_may(tmp_path: Path):
    plan = plan_frames(100, 400, Fraction(25), block_s=0.4)
    store = BlockStore(plan, tmp_path, in_memory=2)
    for segment in plan.segments[:8]:
        store.put_back(avatar(plan.blocks[segment.block]))
        assert len(store._recent) <= 2
    with pytest.raises(FileNotFoundError):
        store.take(9)
