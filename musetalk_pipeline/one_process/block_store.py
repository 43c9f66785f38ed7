"""Blocks that will be needed again when the ping-pong order returns to them."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from pathlib import Path

from musetalk_pipeline.artifacts import AvatarBlock
from musetalk_pipeline.plan import FramePlan

# A block of 2 s takes some 11 MB (warp) or 3 MB (musetalk).
IN_MEMORY = 2
# Source frames that are kept on disk: 5 GB with warp. Blocks beyond that are made again.
ON_DISK_FRAMES = 20_000


class BlockStore:
    """Keeps blocks until their last use: a few in memory, the rest in files under `folder`.

    Which blocks are kept follows from the plan alone, so `has` may be called ahead of time and from
    any thread; everything else belongs to one thread.
    """

    def __init__(
        self,
        plan: FramePlan,
        folder: Path,
        in_memory: int = IN_MEMORY,
        on_disk_frames: int = ON_DISK_FRAMES,
    ) -> None:
        self._uses = plan.uses()
        self._first_use: dict[int, int] = {}
        for segment in plan.segments:
            if segment.block is not None:
                self._first_use.setdefault(segment.block, segment.index)
        self._kept = _blocks_to_keep(plan, self._uses, on_disk_frames)
        self._folder = folder
        self._in_memory = in_memory
        self._recent: OrderedDict[int, AvatarBlock] = OrderedDict()

    def has(self, block: int, segment: int) -> bool:
        """Return whether `block` will be in the store when `segment` is drawn."""
        return block in self._kept and self._first_use[block] < segment

    def take(self, block: int) -> AvatarBlock:
        """Take a block out for one use; `put_back` returns it."""
        avatar = self._recent.pop(block, None)
        if avatar is None:
            avatar = pickle.loads(self._path(block).read_bytes())  # written by `_keep` below
            assert isinstance(avatar, AvatarBlock)
        return avatar

    def put_back(self, avatar: AvatarBlock) -> None:
        """End one use of a block, after which it is kept if later segments need it."""
        block = avatar.block.index
        self._uses[block] -= 1
        if self._uses[block] == 0:
            self._path(block).unlink(missing_ok=True)
        elif block in self._kept:
            self._keep(avatar)

    def _keep(self, avatar: AvatarBlock) -> None:
        self._recent[avatar.block.index] = avatar
        while len(self._recent) > self._in_memory:
            index, oldest = self._recent.popitem(last=False)
            if not self._path(index).exists():
                self._path(index).write_bytes(pickle.dumps(oldest, protocol=5))

    def _path(self, block: int) -> Path:
        return self._folder / f"block{block}"


def _blocks_to_keep(plan: FramePlan, uses: Counter[int], frames: int) -> frozenset[int]:
    kept = set()
    for block in plan.blocks:
        if uses[block.index] > 1:
            frames -= len(block)
            if frames < 0:
                break
            kept.add(block.index)
    return frozenset(kept)
