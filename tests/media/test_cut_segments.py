"""A segment that is cut, as at the end of a served job, shows the same frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musetalk_pipeline.engines.warp.engine import WarpAudioEncoder, WarpEngine
from musetalk_pipeline.faces.mesh import MeshDetector
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.media.encode import stitch
from musetalk_pipeline.options import EncodeOptions, JobOptions, MediaLimits
from musetalk_pipeline.plan import Segment, cut_segment
from musetalk_pipeline.stages import OpenJob, compose_segment, open_job, prepare_block
from tests.decoding import frames_of

LOSSLESS = JobOptions(encode=EncodeOptions(crf=0, preset="ultrafast"))
LENGTHS = (13, 4, 7)  # of the parts of every segment but the first; what is left is another


def parts_of(segment: Segment) -> list[Segment]:
    """Return a segment in parts."""
    parts = []
    for frames in LENGTHS:
        if frames < len(segment):
            part, segment = cut_segment(segment, frames)
            parts.append(part)
    return [*parts, segment]


def drawn(job: OpenJob, segments: list[Segment], path: Path) -> np.ndarray:
    """Draw, encode and join segments; return the decoded frames."""
    engine, encoder, detector = WarpEngine(), WarpAudioEncoder(), MeshDetector()
    options = job.options
    avatars = [
        engine.encode(prepare_block(job, block, detector, needs_parse_inputs=False), options.mask)
        for block in job.plan.blocks
    ]
    pieces = []
    for segment in segments:
        speech = encoder.encode(job.audio, job.plan.fps, segment, options.speech)
        avatar = avatars[segment.block]
        faces = engine.generate(avatar, speech, segment, options.speech)
        pieces.append(compose_segment(job, avatar, faces).data)
    stitch(pieces, job.audio, path, job.picture, job.plan.fps)
    return frames_of(path)


@pytest.mark.parametrize("frames", [60, 20], ids=["to and fro", "turns within a segment"])
def test_segments_that_are_cut_show_the_same_frames(clip, speech, tmp_path, frames):
    files = JobFiles(clip(frames=frames), speech(5.0))
    job = open_job(files, tmp_path, LOSSLESS, MediaLimits(), MeshDetector())
    whole = list(job.plan.segments)
    parts = [whole[0], *(part for segment in whole[1:] for part in parts_of(segment))]
    assert len(parts) > len(whole)
    expected = drawn(job, whole, tmp_path / "whole.mp4")
    assert len(expected) == job.plan.n_output
    assert np.array_equal(drawn(job, parts, tmp_path / "parts.mp4"), expected)
