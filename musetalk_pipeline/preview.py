"""One composited frame with its boxes: a quick look at what the options do."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Face, PreparedBlock, Speech
from musetalk_pipeline.blend import unpack_mask
from musetalk_pipeline.boxes import crop_box
from musetalk_pipeline.colour import to_bgr
from musetalk_pipeline.contact_sheet import spread
from musetalk_pipeline.decode import read_frames
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pipeline import Tools
from musetalk_pipeline.plan import Block, Segment
from musetalk_pipeline.stages import OpenJob, open_job, prepare_block, redraw, require_face

LOOKS = 8  # frames that are searched for a face
FACE_COLOUR, CROP_COLOUR = (0, 220, 0), (0, 200, 255)  # BGR: green and amber


@dataclass(frozen=True, slots=True)
class Preview:
    """`frame`: (H, W, 3) uint8 BGR, composited, nothing drawn over it. `source_frame`: which."""

    frame: NDArray[np.uint8]
    face: Face
    source_frame: int

    def marked(self) -> NDArray[np.uint8]:
        """Return the frame with the face box (green) and the crop box (amber) drawn into it."""
        marked = self.frame.copy()
        for box, colour in ((crop_box(self.face.box), CROP_COLOUR), (self.face.box, FACE_COLOUR)):
            cv2.rectangle(marked, (box.x0, box.y0), (box.x1 - 1, box.y1 - 1), colour, 2)
        return marked

    def png(self) -> bytes:
        """Return the marked frame as a PNG file."""
        is_made, data = cv2.imencode(".png", self.marked())
        assert is_made, "a picture of a checked size can always be written as PNG"
        return data.tobytes()


def make_preview(
    video_path: Path,
    audio_path: Path,
    options: JobOptions,
    tools: Tools,
    limits: MediaLimits | None = None,
) -> Preview:
    """Draw one frame, the first of a few that has a face, with the loudest sound of the first
    block.

    Raises:
        NoFaceFound: none of the frames looked at has a face.
        MediaError, ProcessingError: as `pipeline.run`.
    """
    with tempfile.TemporaryDirectory(prefix="lipsync-", ignore_cleanup_errors=True) as folder:
        job = open_job(
            video_path,
            audio_path,
            Path(folder),
            options,
            limits or MediaLimits(),
            tools.detector,
        )
        prepared, face = _first_face(job, options, tools)
        return _draw(job, prepared, face, options, tools)


def _first_face(job: OpenJob, options: JobOptions, tools: Tools) -> tuple[PreparedBlock, Face]:
    """Return the first block of one frame, of a few over the clip, that has a face."""
    # A preview shows single frames, which have no neighbours to average with.
    options = replace(options, face=replace(options.face, box_smoothing=0))
    reached = job.plan.blocks[-1].end
    for frame in sorted({0, *spread(reached, LOOKS - 1)}):
        block = Block(0, frame, frame + 1)
        needs_parse = tools.engine.needs_parse_inputs
        prepared = prepare_block(job, block, tools.detector, options, needs_parse)
        [face] = prepared.faces
        if face is not None:
            return prepared, face
    require_face(0, job.plan)
    raise AssertionError("unreachable: require_face raises")


def _draw(
    job: OpenJob, prepared: PreparedBlock, face: Face, options: JobOptions, tools: Tools
) -> Preview:
    frame = prepared.block.start
    heard = job.plan.segments[0]
    speech = tools.listener.listen(job.audio, job.plan.fps, heard, options.speech)
    loudest = int(np.argmax(speech.loudness))
    one = slice(loudest, loudest + 1)
    segment = Segment(0, heard.start + loudest, heard.start + loudest + 1, 0, frame, 1)
    avatar = tools.engine.encode(prepared, options.mask)
    drawn = tools.engine.generate(
        avatar, Speech(speech.features[one], speech.loudness[one], 0.0), segment, options.speech
    )
    [pixels] = read_frames(job.source, job.picture, frame, frame + 1)
    mask = unpack_mask(avatar.masks[0])
    weight = float(drawn.weights[0])
    redraw(pixels, job.picture, face, mask, drawn.faces[0], weight, options.mask.blur)
    size = job.picture.width, job.picture.height
    return Preview(to_bgr(pixels, *size, job.picture.colour), face, frame)
