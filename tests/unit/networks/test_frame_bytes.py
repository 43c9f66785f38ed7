"""What a frame is said to take between the stages, beside what the stages really send."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musetalk_pipeline.artifacts import frame_bytes
from musetalk_pipeline.engines import EngineName, make_audio_encoder, make_engine
from musetalk_pipeline.faces import make_detector
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.options import EncodeOptions, JobOptions, MediaLimits
from musetalk_pipeline.stages import compose_segment, open_job, prepare_block

FRAMES = 5


def sent_bytes(value: Any) -> int:
    """Return what a value takes in the object store: its pickle, and the buffers beside it."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(memoryview(buffer).nbytes for buffer in buffers)


@pytest.mark.parametrize(
    ("engine", "crf"),
    [("warp", 18), ("warp", 0), pytest.param("musetalk", 18, marks=pytest.mark.slow)],
)
def test_no_frame_takes_more_than_is_counted_and_most_of_that(
    engine: EngineName,
    crf: int,
    models: Path,
    clip: Callable[..., Path],
    speech: Callable[[float], Path],
    tmp_path: Path,
) -> None:
    """The bound of the segments in flight is in bytes, so it depends on them."""
    options = JobOptions(encode=EncodeOptions(crf=crf, preset="ultrafast"))
    files = JobFiles(clip(frames=FRAMES), speech(FRAMES / 25))
    detector = make_detector("mesh")
    draws = make_engine(engine, models, device="cpu")
    hears = make_audio_encoder(engine, models)
    job = open_job(files, tmp_path, options, MediaLimits(), detector)
    [block], [segment] = job.plan.blocks, job.plan.segments
    prepared = prepare_block(job, block, detector, needs_parse_inputs=engine == "musetalk")
    avatar = draws.encode(prepared, options.mask)
    heard = hears.encode(job.audio, job.plan.fps, segment, options.speech)
    drawn = draws.generate(avatar, heard, segment, options.speech)
    assert len(drawn.faces) == FRAMES
    piece = compose_segment(job, avatar, drawn)
    sent = sum(map(sent_bytes, (prepared, avatar, heard, drawn)))
    counted = FRAMES * frame_bytes(engine, job.picture, options.encode)
    assert 0.7 * counted < sent + sent_bytes(piece) <= counted
