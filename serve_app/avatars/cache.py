"""The avatars that a replica can load instead of making them, on disk and in object storage.

    open   ─► identity, surveys, find      which blocks are there
    load   ─► on this disk, else the shared copy, which is then kept on this disk
    keep   ─► on this disk, then, in the background, the shared copy

Every method blocks, so call it in a thread.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from musetalk_pipeline.artifacts import AvatarBlock
from musetalk_pipeline.avatars.block_file import DamagedFileError, pack_block, unpack_block
from musetalk_pipeline.avatars.identity import AvatarTools, avatar_id, block_name, longer_block
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import Block
from musetalk_pipeline.stages import OpenJob
from serve_app.avatars.about import BLOCK_SUFFIX, VIDEO, About, write_about
from serve_app.avatars.local import LocalAvatars
from serve_app.avatars.shared import SharedAvatars
from serve_app.avatars.surveys import StoredSurveys

logger = logging.getLogger(__name__)


class AvatarCache:
    """Finds, loads and keeps avatars that the tools of this replica make."""

    def __init__(
        self, local: LocalAvatars, tools: AvatarTools, shared: SharedAvatars | None = None
    ) -> None:
        self._local = local
        self._tools = tools
        self._shared = shared

    def identity(self, video_sha256: str, options: JobOptions) -> str:
        """Return the id of the avatar that a job needs."""
        return avatar_id(video_sha256, options, self._tools)

    def surveys(self, avatar: str) -> StoredSurveys:
        """Return the known surveys of its video."""
        return StoredSurveys(self._local, avatar)

    def shared_names(self, avatar: str) -> frozenset[str]:
        """Return which files of an avatar the shared copy has; none if it does not say so soon."""
        return frozenset() if self._shared is None else self._shared.names(avatar)

    def find(self, avatar: str, job: OpenJob, shared: frozenset[str]) -> dict[int, str]:
        """Return the files of the blocks of a job that can be loaded, by the index of the block.

        `shared`: the files of the shared copy.
        """
        found = {}
        names = {
            name.removesuffix(BLOCK_SUFFIX)
            for name in self._local.names(avatar) | shared
            if name.endswith(BLOCK_SUFFIX)
        }
        # An hour of video has 1800 blocks, so each is compared only with those that begin with it.
        of_start: dict[str, list[str]] = defaultdict(list)
        for name in names:
            of_start[name.partition("-")[0]].append(name)
        for block in job.plan.blocks:
            name, alike = _name(job, block), of_start.get(str(block.start), [])
            if name in names:
                found[block.index] = name + BLOCK_SUFFIX
            elif (longer := self._longer(alike, job, block)) is not None:
                found[block.index] = longer[0] + BLOCK_SUFFIX
        return found

    def load(
        self, avatar: str, job: OpenJob, block: Block, file: str | None, within_s: float
    ) -> AvatarBlock | None:
        """Return a block; None if there is none, or only a damaged one.

        `file`: the one that `find` returned; None if the block was kept later. `within_s`: how long
        a download may take, because making the block takes as long.
        """
        file = file or _name(job, block) + BLOCK_SUFFIX
        stored = self._stored_block(job, block, file)
        content = self._local.read_sealed(avatar, file)
        if content is not None:
            try:
                return unpack_block(content, stored).first(block)
            except DamagedFileError as exc:
                self._local.remove_damaged(avatar, file, exc)
        content = None if self._shared is None else self._shared.get(avatar, file, within_s)
        if content is None:
            return None
        try:
            found = unpack_block(content, stored).first(block)
        except DamagedFileError as exc:
            extra = {"avatar": avatar, "file": file, "fault": str(exc)}
            logger.warning("a damaged file of the shared avatars is ignored", extra=extra)
            return None
        self._keep_content(avatar, job, file, content)
        return found

    def keep(self, avatar: str, job: OpenJob, made: AvatarBlock) -> bool:
        """Keep a block on this disk; return whether it is there. Its upload only begins."""
        name = _name(job, made.block) + BLOCK_SUFFIX
        if name in self._local.names(avatar):
            return True
        content = pack_block(made)
        is_kept = self._keep_content(avatar, job, name, content)
        if self._shared is not None:
            self._shared.put_later(avatar, name, content)
        return is_kept

    def keep_video(self, avatar: str, job: OpenJob) -> bool:
        """Keep a copy of the video, so that jobs can name the avatar in place of an address."""
        write_about(self._local, avatar, About.of(job, self._tools))
        return self._local.write_copy(avatar, VIDEO, Path(job.source.path))

    def _keep_content(self, avatar: str, job: OpenJob, name: str, content: bytes) -> bool:
        write_about(self._local, avatar, About.of(job, self._tools))
        return self._local.write_sealed(avatar, name, content)

    def _stored_block(self, job: OpenJob, block: Block, file: str) -> Block:
        """Return the block that is in a file: `block`, or a longer one that begins with it."""
        longer = self._longer([file.removesuffix(BLOCK_SUFFIX)], job, block)
        return block if longer is None else longer[1]

    def _longer(self, names: Iterable[str], job: OpenJob, block: Block) -> tuple[str, Block] | None:
        return longer_block(names, block, job.plan, job.picture, job.options, self._tools)


def _name(job: OpenJob, block: Block) -> str:
    return block_name(block, job.plan, job.picture, job.options, job.track)
