"""An AvatarBlock as the content of one file, which is verified when it is read.

    8 bytes    MAGIC
    32 bytes   the SHA-256 of everything that follows
    the rest   the payload: the arrays of a block in the safetensors format, or any other bytes

No object is unpickled, so a file can hold wrong numbers at worst. A block is accepted only if every
array has the type and the shape that the engines and the compositor rely on.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from musetalk_pipeline.artifacts import AvatarBlock, Face, in_rows
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.face_choice import MOST_FACES
from musetalk_pipeline.plan import Block

MAGIC = b"LIPSYNC1"  # raised with every change of this format
DIGEST_BYTES = 32
MASK_BYTES = 512 * 512 // 8
# What one row of AvatarBlock.appearance may be: a crop of `warp`, or the latents of `musetalk`.
APPEARANCES: dict[str, tuple[int, ...]] = {"uint8": (256, 256, 3), "float32": (8, 32, 32)}
_NAMES = {"frames", "present", "points", "boxes", "scores", "appearance", "masks"}


class DamagedFileError(ValueError):
    """The bytes are not what was written, or not the block that was asked for."""


def seal(payload: bytes) -> bytes:
    """Return the content of a file: the payload behind its digest."""
    return b"".join((MAGIC, hashlib.sha256(payload).digest(), payload))


def unseal(content: bytes) -> bytes:
    """Return the payload of a file.

    Raises:
        DamagedFileError: the content does not match its digest.
    """
    start = len(MAGIC) + DIGEST_BYTES
    payload = content[start:]
    digest = hashlib.sha256(payload).digest()
    if content[:start] != MAGIC + digest:
        raise DamagedFileError("the content does not match its digest")
    return payload


def pack_block(avatar: AvatarBlock) -> bytes:
    """Return the content of the file of one block."""
    faces = in_rows(avatar.faces)
    arrays: dict[str, NDArray[np.generic]] = {
        "frames": np.array([avatar.block.start, avatar.block.end], np.int64),
        "present": np.array([len(in_rows([face])) for face in avatar.faces], np.uint8),
        "points": np.array([face.points for face in faces], np.float32).reshape(-1, 68, 2),
        "boxes": np.array([_sides(face.box) for face in faces], np.int64).reshape(-1, 4),
        "scores": np.array([face.score for face in faces], np.float64),
        "appearance": np.ascontiguousarray(avatar.appearance),
        "masks": np.ascontiguousarray(avatar.masks),
    }
    return seal(save(arrays))


def unpack_block(content: bytes, block: Block) -> AvatarBlock:
    """Return the block of a file, which must have the frames of `block`.

    Raises:
        DamagedFileError: it is not a file of that block, or has been changed.
    """
    try:
        arrays: dict[str, NDArray[np.generic]] = load(unseal(content))
    except SafetensorError as exc:
        raise DamagedFileError(str(exc)) from exc
    for fault in _faults(arrays, block):
        raise DamagedFileError(fault)
    rows = zip(arrays["points"], arrays["boxes"], arrays["scores"], strict=True)
    faces = iter([Face(points, Box(*map(int, box)), float(score)) for points, box, score in rows])
    return AvatarBlock(
        block=block,
        faces=tuple(_of_frame(faces, int(count)) for count in arrays["present"]),
        appearance=arrays["appearance"],  # type: ignore[arg-type]  # one of APPEARANCES
        masks=arrays["masks"],  # type: ignore[arg-type]
    )


def _of_frame(faces: Iterator[Face], count: int) -> Face | None:
    """Return the next `count` faces as those of one frame."""
    own = tuple(itertools.islice(faces, count))
    return replace(own[0], others=own[1:]) if own else None


def _sides(box: Box) -> tuple[int, int, int, int]:
    return box.x0, box.y0, box.x1, box.y1


def _faults(arrays: dict[str, NDArray[np.generic]], block: Block) -> Iterator[str]:
    """Yield what is wrong with the arrays of a file that is said to be `block`."""
    if arrays.keys() != _NAMES:
        yield "the file has other arrays than a block"
        return
    present = arrays["present"]
    if present.shape != (len(block),) or not np.isin(present, range(MOST_FACES + 1)).all():
        yield "the file has another number of frames"
        return
    faces = int(present.sum())
    appearance = arrays["appearance"]
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "frames": ("int64", (2,)),
        "present": ("uint8", (len(block),)),
        "points": ("float32", (faces, 68, 2)),
        "boxes": ("int64", (faces, 4)),
        "scores": ("float64", (faces,)),
        "appearance": (appearance.dtype.name, (faces, *APPEARANCES.get(appearance.dtype.name, ()))),
        "masks": ("uint8", (faces, MASK_BYTES)),
    }
    for name, (kind, shape) in expected.items():
        if (arrays[name].dtype.name, arrays[name].shape) != (kind, shape):
            yield f"the array {name} has another type or shape"
    if appearance.dtype.name not in APPEARANCES:
        yield "the file is of an unknown engine"
    if arrays["frames"].tolist() != [block.start, block.end]:
        yield "the file has other frames"
