"""Blocks of a job's avatar that need not be made: kept by an earlier job, or made by another one.

    kept        ─► load
    in making   ─► wait for the job that makes it, then load
    neither     ─► make it, and keep it behind the job

Jobs with the same new video that run at once thereby make each block once.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from musetalk_pipeline.avatars.identity import block_name
from musetalk_pipeline.plan import Block
from serve_app.graph.ray_errors import is_of_ray
from serve_app.graph.transfers import Opened

logger = logging.getLogger(__name__)

LOAD_S = 30.0  # a load is a read, or a download that is limited to seconds
STORE_S = 60.0  # of a store, after which nobody waits for it any more
WAIT_S = 60.0  # for another job to make a block
MOST_KNOWN = 10_000  # blocks that were kept since the ingress started


class BlocksInMaking:
    """The blocks that the jobs of an ingress make and keep, by avatar and name."""

    def __init__(self) -> None:
        self._making: dict[tuple[str, str], asyncio.Future[bool]] = {}
        self._kept: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._storing: set[asyncio.Task[None]] = set()

    def of(self, key: tuple[str, str]) -> "asyncio.Future[bool] | None":
        """Return what becomes true when the block is kept, or false when it is not going to be;
        None if nobody makes it.
        """
        return self._making.get(key)

    def was_kept(self, key: tuple[str, str]) -> bool:
        """Return whether a job has kept the block, maybe after others were opened."""
        return key in self._kept

    def forget(self, key: tuple[str, str]) -> None:
        """Note that a block is gone."""
        self._kept.pop(key, None)

    def begin(self, key: tuple[str, str]) -> None:
        """Announce that a block is made."""
        self._making[key] = asyncio.get_running_loop().create_future()

    def end(self, key: tuple[str, str], *, is_kept: bool) -> None:
        """Tell those who wait whether they can load the block."""
        self._making.pop(key).set_result(is_kept)
        if is_kept:
            self._kept[key] = None
        while len(self._kept) > MOST_KNOWN:
            self._kept.popitem(last=False)

    def end_after(self, key: tuple[str, str], storing: Awaitable[bool]) -> None:
        """End the making when the block has been stored, in the background."""

        async def store() -> None:
            is_kept = False
            try:
                is_kept = await storing
            except BaseException as exc:  # Ray raises anything for a call that cannot be sent
                if not isinstance(exc, Exception) and not is_of_ray(exc):
                    raise
                logger.warning("a block is not kept", extra={"error": type(exc).__name__})
            finally:
                self.end(key, is_kept=is_kept)

        task = asyncio.create_task(store())
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)


class JobAvatar:
    """The kept blocks of one job.

    `load(block)` returns a reference to a kept block or None, and `store(avatar)` keeps a block.
    Both have deadlines, `LOAD_S` and `STORE_S`.
    """

    def __init__(
        self,
        opened: Opened,
        in_making: BlocksInMaking,
        load: Callable[[Block], Awaitable[Any]],
        store: Callable[[Any], Awaitable[bool]],
    ) -> None:
        self._opened, self._in_making = opened, in_making
        self._load, self._store = load, store
        self._stored = set(opened.avatar.stored if opened.avatar else ())

    def has(self, block: Block) -> bool:
        """Return whether a block was kept when the job was opened, or has been since."""
        return block.index in self._stored

    async def find(self, block: Block) -> Any | None:
        """Return a reference to a kept block; None if this job has to make it."""
        if self._opened.avatar is None:
            return None
        key = self._key(block)
        while True:
            if self.has(block) or self._in_making.was_kept(key):
                found = await self._loaded(block)
                if found is not None:
                    self._stored.add(block.index)
                    return found
                self._stored.discard(block.index)
                self._in_making.forget(key)
            making = self._in_making.of(key)
            if making is None:
                return None
            done, _ = await asyncio.wait({making}, timeout=WAIT_S)
            if not done:
                return None

    @asynccontextmanager
    async def making(self, block: Block) -> AsyncIterator[Callable[[Any], None]]:
        """Tell other jobs that this one makes a block. Yield what the result is passed to."""
        if self._opened.avatar is None or self._in_making.of(key := self._key(block)) is not None:
            yield lambda avatar: None
            return
        self._in_making.begin(key)
        made: list[Any] = []
        try:
            yield made.append
        finally:
            if made:
                self._in_making.end_after(key, self._store(made[0]))
            else:
                self._in_making.end(key, is_kept=False)

    async def settled(self, block: Block) -> bool:
        """Wait until a block that was made has been stored; return whether it is kept."""
        if self._opened.avatar is None:
            return False
        storing = self._in_making.of(key := self._key(block))
        if storing is not None:
            return await asyncio.shield(storing)
        return self.has(block) or self._in_making.was_kept(key)

    async def _loaded(self, block: Block) -> Any | None:
        try:
            return await self._load(block)
        except BaseException as exc:
            if not isinstance(exc, Exception) and not is_of_ray(exc):
                raise
            logger.warning("a kept block is not loaded", extra={"error": type(exc).__name__})
            return None

    def _key(self, block: Block) -> tuple[str, str]:
        avatar, job = self._opened.avatar, self._opened.job
        name = block_name(block, job.plan, job.picture, job.options, job.track)
        return ("" if avatar is None else avatar.avatar_id, name)
