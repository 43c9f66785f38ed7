"""What an avatar depends on: two jobs with equal identities have equal blocks.

    the bytes of the video       ─┐
    the options in IN_IDENTITY   ─┼─► avatar_id
    AvatarTools                  ─┘
    the frames of a block, those its faces depend on, the picture ─► block_name

How a job is cut into blocks, and so the length of its sound, decides only which blocks it needs.
The picture is part of the name of a block, because with `fit: crop` it depends on the frames that
the sound reaches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from musetalk_pipeline.artifacts import Picture
from musetalk_pipeline.face_choice import plain
from musetalk_pipeline.options import (
    EncodeOptions,
    FaceOptions,
    FrameOptions,
    JobOptions,
    MaskOptions,
    SpeechOptions,
)
from musetalk_pipeline.plan import Block, FramePlan
from musetalk_pipeline.time_options import TimeOptions
from musetalk_pipeline.track import Track

# Raised whenever faces, crops, latents or masks are computed differently.
REVISION = 1
ID_CHARS = 32
_PICTURE_CHARS = 12

IN_IDENTITY: dict[type, frozenset[str]] = {
    FrameOptions: frozenset({"resolution", "aspect_ratio", "fit"}),
    FaceOptions: frozenset(
        {"version", "bbox_shift", "extra_margin", "box_smoothing", "faceless", "edges", "face"}
    ),
    MaskOptions: frozenset({"parsing_mode", "left_cheek_width", "right_cheek_width"}),
}
# `fps` decides which frames a block has, and those are in its name. `blur` acts when a face is
# pasted. Times decide which blocks there are. The others concern the sound or the encoder.
NOT_IN_IDENTITY: dict[type, frozenset[str]] = {
    FrameOptions: frozenset({"fps"}),
    MaskOptions: frozenset({"blur"}),
    SpeechOptions: frozenset(
        {
            "audio_padding_left",
            "audio_padding_right",
            "rest_in_silence",
            "window_placement",
            "window_span",
            "chunk_overlap_s",
            "frame_rate",
        }
    ),
    EncodeOptions: frozenset({"crf", "preset", "audio_bitrate_kbps"}),
    TimeOptions: frozenset(
        {
            *("sync_mode", "segments"),
            *("video_start_s", "video_end_s", "audio_start_s", "audio_end_s"),
        }
    ),
}


@dataclass(frozen=True, slots=True)
class AvatarTools:
    """What finds the faces of a process, and encodes them.

    `precisions`: those of the VAE encoder in all pools, any of which may encode a block; sorted.
    `seed`: of the VAE encoder. Both are empty for an engine that has none. `presence_interval`:
    None unless S3FD decides what is a face. `files`: the name and the SHA-256 of each file that the
    result depends on; sorted.
    """

    engine: str
    model_version: str
    landmarks: str
    face_presence: str
    presence_interval: int | None
    person_box: str
    seed: int | None = None
    precisions: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


def avatar_id(video_sha256: str, options: JobOptions, tools: AvatarTools) -> str:
    """Return the identity of an avatar, 32 hexadecimal digits."""
    chosen = {
        name: getattr(part, name)
        for part in (getattr(options, each) for each in ("frame", "face", "mask"))
        for name in sorted(IN_IDENTITY[type(part)])
    }
    # Left out if nothing is chosen, so that avatars from before there was a choice are still found.
    face = chosen.pop("face")
    if face != "largest":
        chosen["face"] = plain(face)
    facts = {
        "revision": REVISION,
        "video": video_sha256,
        "options": chosen,
        "tools": asdict(tools),
    }
    return _digest(facts)[:ID_CHARS]


def block_name(
    block: Block,
    plan: FramePlan,
    picture: Picture,
    options: JobOptions,
    track: Track | None = None,
) -> str:
    """Return the name of a block among those of its avatar. `track`: of the chosen person."""
    first, end = plan.seen(block, options.face.box_smoothing)
    facts = asdict(picture)
    if track is not None:
        # How far a person is followed depends on the sound, and so may where they are found.
        boxes = [track.at(frame) for frame in range(first, end)]
        facts["track"] = [box and asdict(box) for box in boxes]
    digest = _digest(facts)[:_PICTURE_CHARS]
    return f"{block.start}-{block.end}-{first}-{end}-{digest}"


def longer_block(
    names: Iterable[str],
    block: Block,
    plan: FramePlan,
    picture: Picture,
    options: JobOptions,
    tools: AvatarTools,
) -> tuple[str, Block] | None:
    """Return, of the blocks with these names, one that begins with all frames of `block`, and its
    name; None if there is none.

    The sound, or a span that speaks, may end inside a block. The faces of its frames are then the
    same as in the whole block, unless they depend on frames that follow, as those of a person who
    is followed do.
    """
    is_followed = not isinstance(options.face.face, str)
    if options.face.box_smoothing or tools.face_presence != "landmarks" or is_followed:
        return None
    found = []
    for name in names:
        end = name.split("-")[1] if name.startswith(f"{block.start}-") else ""
        if end.isdecimal() and int(end) > block.end:
            longer = Block(block.index, block.start, int(end))
            # With itself as the last block, because no frame beyond its end counts.
            own = FramePlan(plan.n_output, plan.fps, (*plan.blocks, longer), plan.segments)
            if name == block_name(longer, own, picture, options):
                found.append((longer.end, name, longer))
    return min(found)[1:] if found else None


def _digest(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
