"""The whole chain, from pixels and sound to finished frames, through the engine as jobs use it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Face, PreparedBlock
from musetalk_pipeline.engines.musetalk.engine import MuseTalkEngine, MuseTalkOptions
from musetalk_pipeline.pixels.blend import unpack_mask
from musetalk_pipeline.pixels.crops import parse_input
from musetalk_pipeline.plan import Block, count_output_frames, plan_frames, source_of

from .frame_checks import LATENTS, OFFLINE_BLUR, VersionChecks, compare_faces, stored_frames
from .golden import SPEECH
from .report import Row, Tolerance, compare

CHAIN = Tolerance(1, 0.005)  # of decoded faces and of finished frames


def check_chain(checks: VersionChecks) -> Iterator[Row]:
    """Run encode and generate over all blocks and segments; compare latents, faces and frames."""
    golden, version = checks.golden, checks.version
    stage, fps = f"{version} chain", golden.fps
    latents = golden.load(f"{version}_latents")
    options = MuseTalkOptions(version=version, seed=int(latents["seed"]), batch_size=4)
    engine = MuseTalkEngine(golden.models, options)
    count = count_output_frames(golden.short_audio.n_samples, fps)
    # Short blocks, so that segments of several blocks and both directions take part.
    plan = plan_frames(len(golden.frames), count, fps, block_s=0.2)
    avatars = [
        engine.encode(_prepare(checks, block), checks.masks(checks.modes[0]))
        for block in plan.blocks
    ]
    computed = np.concatenate([avatar.appearance for avatar in avatars])
    # Only the frames that the audio reaches are prepared.
    yield compare(stage, "latents", computed, latents["sampled"][: len(computed)], LATENTS)
    faces = np.concatenate(
        [
            engine.generate(
                avatars[segment.block],
                golden.audio_encoder.encode(golden.short_audio, fps, segment, SPEECH),
                segment,
                SPEECH,
            ).faces
            for segment in plan.segments
        ]
    )
    yield from compare_faces(golden, version, faces, stage, CHAIN)
    yield from _compare_blended(checks, np.concatenate([each.masks for each in avatars]), faces)


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
    )


def _compare_blended(
    checks: VersionChecks, masks: NDArray[np.uint8], faces: NDArray[np.uint8]
) -> Iterator[Row]:
    """Compare finished frames. `masks`: (n, 32768) packed, of the source frames reached."""
    arrays, mode = checks.golden.load(f"{checks.version}_blended"), checks.modes[0]
    for frame, picture in stored_frames(arrays["idx"], arrays[mode], is_complete=True):
        source = source_of(frame, len(checks.boxes))
        blended = checks.blend(source, faces[frame], unpack_mask(masks[source]), OFFLINE_BLUR)
        name = f"{mode} frame {frame}"
        yield compare(f"{checks.version} chain", name, blended, picture, CHAIN)
