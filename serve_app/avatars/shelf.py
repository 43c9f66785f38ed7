"""The avatars on this machine as callers see them: listed, deleted, and named in jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from musetalk_pipeline.avatars.block_file import DamagedFileError
from serve_app.avatars.about import ABOUT, BLOCK_SUFFIX, VIDEO, About, read_about
from serve_app.avatars.local import LocalAvatars, StoredFile
from serve_app.avatars.shared import SharedAvatars


@dataclass(frozen=True, slots=True)
class KeptAvatar:
    """An avatar. `prepared_frames`: of the video, from its beginning or not. `last_used`: seconds
    since the epoch. `has_video`: whether jobs can name it in place of the address of a video.
    """

    avatar_id: str
    about: About
    prepared_frames: int
    size_bytes: int
    last_used: float
    has_video: bool


class AvatarShelf:
    """What is on this machine, and its shared copy. Every method blocks."""

    def __init__(self, local: LocalAvatars, shared: SharedAvatars | None = None) -> None:
        self._local = local
        self._shared = shared

    def list(self) -> list[KeptAvatar]:
        """Return all avatars, the most recently used first."""
        files = sorted(self._local.files(), key=lambda file: file.avatar_id)
        groups = groupby(files, key=lambda file: file.avatar_id)
        found = [self._kept(avatar_id, list(group)) for avatar_id, group in groups]
        return sorted(
            (avatar for avatar in found if avatar), key=lambda each: each.last_used, reverse=True
        )

    def get(self, avatar_id: str) -> KeptAvatar | None:
        """Return one avatar."""
        files = [file for file in self._local.files() if file.avatar_id == avatar_id]
        return self._kept(avatar_id, files)

    def delete(self, avatar_id: str) -> None:
        """Remove an avatar here and, as far as the key allows it, from the shared copy."""
        self._local.delete(avatar_id)
        if self._shared is not None:
            self._shared.delete(avatar_id)

    def fetch_video(self, avatar_id: str, target: Path) -> str | None:
        """Copy the video of an avatar to `target` and return its SHA-256 in hex; None if it is not
        here, or damaged.

        Raises:
            OSError: it cannot be copied.
        """
        about = read_about(self._local, avatar_id)
        if about is None or not self._local.copy_out(avatar_id, VIDEO, target):
            return None
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != about.video_sha256:
            target.unlink()
            fault = DamagedFileError("the video has another digest than it had")
            self._local.remove_damaged(avatar_id, VIDEO, fault)
            return None
        return digest

    def _kept(self, avatar_id: str, files: Iterable[StoredFile]) -> KeptAvatar | None:
        by_name = {file.name: file for file in files}
        about = read_about(self._local, avatar_id) if ABOUT in by_name else None
        if about is None:
            return None
        ranges = {
            range(*map(int, name.split("-")[:2])) for name in by_name if name.endswith(BLOCK_SUFFIX)
        }
        return KeptAvatar(
            avatar_id,
            about,
            prepared_frames=len(set().union(*ranges)),
            size_bytes=sum(file.size_bytes for file in by_name.values()),
            last_used=max(file.used for file in by_name.values()),
            has_video=VIDEO in by_name,
        )
