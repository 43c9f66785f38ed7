"""Kept avatars, as the Preprocessor finds, loads and stores them for the jobs of its node.

None of this uses the threads of the stage, so a slow disk or a download delays no other work.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass

from musetalk_pipeline.artifacts import AvatarBlock
from musetalk_pipeline.cost import Measured, StageCost, measure
from musetalk_pipeline.job_media import Digests
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import Block
from musetalk_pipeline.stages import OpenJob
from musetalk_pipeline.survey import KnownSurveys
from serve_app.avatars.cache import AvatarCache
from serve_app.graph.stage_threads import StageThreads
from serve_app.graph.transfers import KnownAvatar, Opened

logger = logging.getLogger(__name__)

LOAD_THREADS = 2
MAX_STORING = 4  # blocks that wait for the disk; further ones are not kept
FRAME_S = 0.02  # to prepare a frame, until it has been measured (guess)
NEW_SHARE = 0.2  # of the newest measurement in the moving average (guess)


class NodeAvatars:
    """The kept avatars of a replica. `cache`: None if avatars are not kept here."""

    def __init__(self, cache: AvatarCache | None) -> None:
        self._cache = cache
        self._loading = StageThreads(LOAD_THREADS, "load-avatar")
        self._storing = StageThreads(1, "store-avatar")
        self._n_storing = 0
        self._frame_s = FRAME_S

    def look_up(self, options: JobOptions, digests: Digests) -> "LookUp | None":
        """Begin to look for the avatar of a job that is about to be opened; None if avatars are not
        kept here. Opening the job takes longer than to list the shared copy, which happens beside.
        """
        if self._cache is None:
            return None
        avatar_id = self._cache.identity(digests.video, options)
        listing = asyncio.create_task(self._loading.run(self._cache.shared_names, avatar_id))
        return LookUp(self._cache, avatar_id, listing, self._loading)

    def kept_here(self, options: JobOptions, digests: Digests) -> "KeptHere | None":
        """Return what is kept on this machine of the avatar of a job, for an estimate; None if
        avatars are not kept here. The shared copy is not listed, because that may take seconds.
        """
        if self._cache is None:
            return None
        return KeptHere(self._cache, self._cache.identity(digests.video, options))

    def took(self, cost: StageCost) -> None:
        """Learn how long it takes to prepare a frame; a download must be faster."""
        frame_s = cost.seconds / max(1, cost.frames)
        self._frame_s += NEW_SHARE * (frame_s - self._frame_s)

    async def load(self, opened: Opened, block: Block) -> Measured[AvatarBlock] | None:
        """Return a kept block; None if there is none that can be used."""
        cache, avatar = self._cache, opened.avatar
        if cache is None or avatar is None:
            return None
        within_s = self._frame_s * len(block)
        loaded = await self._loading.run(
            measure,
            "load",
            len(block),
            lambda: cache.load(
                avatar.avatar_id, opened.job, block, avatar.stored.get(block.index), within_s
            ),
        )
        return None if loaded.value is None else Measured(loaded.value, loaded.costs)

    async def store(self, opened: Opened, made: AvatarBlock) -> bool:
        """Keep a block that was made; return whether it is kept."""
        cache, avatar = self._cache, opened.avatar
        if cache is None or avatar is None or self._n_storing >= MAX_STORING:
            return False
        self._n_storing += 1
        try:
            return await self._storing.run(cache.keep, avatar.avatar_id, opened.job, made)
        except Exception:  # whatever it is, the job does not need this
            logger.exception("an avatar is not kept", extra={"avatar": avatar.avatar_id})
            return False
        finally:
            self._n_storing -= 1

    async def keep_video(self, opened: Opened, job: OpenJob) -> bool:
        """Keep the video of a job with its avatar; return whether it is kept."""
        if self._cache is None or opened.avatar is None:
            return False
        return await self._storing.run(self._cache.keep_video, opened.avatar.avatar_id, job)


@dataclass(frozen=True, slots=True)
class KeptHere:
    """What is kept of an avatar on this machine. The properties and methods block."""

    cache: AvatarCache
    avatar_id: str

    @property
    def surveys(self) -> KnownSurveys:
        """The surveys of its video by earlier jobs."""
        return self.cache.surveys(self.avatar_id)

    def blocks(self, job: OpenJob) -> Collection[int]:
        """Return the indices of the blocks of a job that can be loaded."""
        return self.cache.find(self.avatar_id, job, frozenset()).keys()


@dataclass(frozen=True, slots=True)
class LookUp:
    """What is known of the avatar of a job that is being opened. `shared`: of the shared copy."""

    cache: AvatarCache
    avatar_id: str
    shared: "asyncio.Task[frozenset[str]]"
    threads: StageThreads

    @property
    def surveys(self) -> KnownSurveys:
        """The surveys of its video by earlier jobs."""
        return self.cache.surveys(self.avatar_id)

    async def known(self, job: OpenJob) -> KnownAvatar:
        """Return its identity, and the blocks that can be loaded."""
        shared = await self.shared
        stored = await self.threads.run(self.cache.find, self.avatar_id, job, shared)
        return KnownAvatar(self.avatar_id, stored)
