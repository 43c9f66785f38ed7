"""The whole chain, from pixels and sound to finished frames, through the engine as jobs use it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Face, PreparedBlock
from musetalk_pipeline.blend import unpack_mask
from musetalk_pipeline.crops import parse_input
from musetalk_pipeline.engines.musetalk import MuseTalkEngine, MuseTalkOptions
from musetalk_pipeline.plan import Block, count_output_frames, plan_frames, source_of

from .hearing import FPS, OPTIONS
from .report import Row, Tolerance, compare
from .seeing import LATENTS, OFFLINE_BLUR, VersionChecks, compare_faces

FACES = Tolerance(1, 0.005)
BLENDED = Tolerance(2, 0.005)


def check_chain(checks: VersionChecks) -> list[Row]:
    """Run encode and generate over all blocks and segments; compare latents, faces and frames."""
    golden, version = checks.golden, checks.version
    stage = f"{version} chain"
    latents = golden.load(f"{version}_latents")
    options = MuseTalkOptions(version=version, seed=int(latents["seed"]), batch_size=4)
    engine = MuseTalkEngine(golden.models, options)
    count = count_output_frames(golden.short_audio.n_samples, FPS)
    # Short blocks, so that segments of several blocks and both directions take part.
    plan = plan_frames(len(golden.frames), count, FPS, block_s=0.2)
    avatars = [
        engine.encode(_prepare(checks, block), checks.masks(checks.modes[0]))
        for block in plan.blocks
    ]
    faces = np.concatenate(
        [
            engine.generate(
                avatars[segment.block],
                golden.listener.listen(golden.short_audio, FPS, segment, OPTIONS),
                segment,
                OPTIONS,
            ).faces
            for segment in plan.segments
        ]
    )
    looks = np.concatenate([avatar.look for avatar in avatars])
    return [
        compare(stage, "latents", looks, latents["sampled"][: len(looks)], LATENTS),
        *compare_faces(golden, version, faces, stage, FACES),
        *_compare_blended(checks, np.concatenate([avatar.masks for avatar in avatars]), faces),
    ]


def _prepare(checks: VersionChecks, block: Block) -> PreparedBlock:
    golden, span = checks.golden, slice(block.start, block.end)
    frames, boxes = golden.frames[span], checks.boxes[span]
    return PreparedBlock(
        block=block,
        faces=tuple(
            Face(points, box, 1.0)
            for points, box in zip(golden.landmarks[span], boxes, strict=True)
        ),
        crops=checks.crops[span],
        parse_inputs=np.stack([parse_input(*pair) for pair in zip(frames, boxes, strict=True)]),
        seconds=0.0,
    )


def _compare_blended(
    checks: VersionChecks, masks: NDArray[np.uint8], faces: NDArray[np.uint8]
) -> list[Row]:
    """Compare finished frames. `masks`: (n, 32768) packed, of all source frames."""
    arrays, mode = checks.golden.load(f"{checks.version}_blended"), checks.modes[0]
    rows: list[Row] = []
    for frame, picture in zip(arrays["idx"].tolist(), arrays[mode], strict=False):
        source = source_of(frame, len(checks.boxes))
        blended = checks.blend(source, faces[frame], unpack_mask(masks[source]), OFFLINE_BLUR)
        name = f"{mode} frame {frame}"
        rows.append(compare(f"{checks.version} chain", name, blended, picture, BLENDED))
    return rows
