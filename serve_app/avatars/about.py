"""What an avatar was made of, for those who list avatars and name one in a job."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from musetalk_pipeline.avatars.identity import AvatarTools
from musetalk_pipeline.stages import OpenJob
from serve_app.avatars.local import LocalAvatars

ABOUT, VIDEO = "about", "video"  # names among the files of an avatar
BLOCK_SUFFIX = ".block"


@dataclass(frozen=True, slots=True)
class About:
    """`width`, `height`: of the picture. `fps`, `frames`, `duration_s`: of the whole video."""

    video_sha256: str
    engine: str
    model_version: str
    landmarks: str
    width: int
    height: int
    fps: float
    frames: int
    duration_s: float

    @classmethod
    def of(cls, job: OpenJob, tools: AvatarTools) -> About:
        """Return what the avatar of an opened job is made of."""
        source, picture = job.source, job.picture
        return cls(
            video_sha256=source.sha256,
            engine=tools.engine,
            model_version=tools.model_version,
            landmarks=tools.landmarks,
            width=picture.width,
            height=picture.height,
            fps=round(float(source.fps), 3),
            frames=source.n_frames,
            duration_s=round(source.duration_s, 3),
        )


def write_about(local: LocalAvatars, avatar_id: str, about: About) -> None:
    """Keep it, unless that has been done."""
    if ABOUT not in local.names(avatar_id):
        local.write(avatar_id, ABOUT, json.dumps(asdict(about)).encode())


def read_about(local: LocalAvatars, avatar_id: str) -> About | None:
    """Return it, without marking the avatar as used; None if there is no such avatar."""
    payload = local.read(avatar_id, ABOUT, is_use=False)
    # Its digest has been verified, so this is what `write_about` has written.
    return None if payload is None else About(**json.loads(payload))
