"""One composited frame with its boxes, to see quickly what the options do."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import (
    AvatarBlock,
    DrawnFaces,
    Face,
    Picture,
    PreparedBlock,
    Speech,
)
from musetalk_pipeline.boxes import crop_box
from musetalk_pipeline.contact_sheet import spread
from musetalk_pipeline.engines.interface import AudioEncoder, Engine
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pipeline import Tools
from musetalk_pipeline.pixels.blend import unpack_mask
from musetalk_pipeline.pixels.colour import to_bgr
from musetalk_pipeline.plan import Block, Segment
from musetalk_pipeline.stages import (
    DrawnFace,
    JobFiles,
    OpenJob,
    open_job,
    prepare_block,
    redraw,
    require_face,
)

SAMPLED_FRAMES = 8  # that are searched for a face
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

    def png(self, *, has_boxes: bool = True) -> bytes:
        """Return the frame as a PNG file, marked or as it is."""
        is_made, data = cv2.imencode(".png", self.marked() if has_boxes else self.frame)
        assert is_made, "a picture of a checked size can always be written as PNG"
        return data.tobytes()


def make_preview(video_path: Path, audio_path: Path, options: JobOptions, tools: Tools) -> Preview:
    """Draw one frame, the first of a few that has a face, with the loudest sound of the first
    block.

    Raises:
        NoFaceFound: none of the sampled frames has a face.
        MediaError, ProcessingError: as `pipeline.run`.
    """
    with tempfile.TemporaryDirectory(prefix="lipsync-", ignore_cleanup_errors=True) as folder:
        files = JobFiles(video_path, audio_path)
        job = open_job(files, Path(folder), options, MediaLimits(), tools.detector)
        needs_parse_inputs = tools.engine.needs_parse_inputs
        frame = pick_preview_frame(job, tools.detector, tools.audio_encoder, needs_parse_inputs)
        return compose_preview(frame, draw_preview(frame, tools.engine, options), options)


@dataclass(frozen=True, slots=True)
class PreviewFrame:
    """What the engine and the paste need of one frame. `pixels`: I420 of the `picture`."""

    prepared: PreparedBlock
    face: Face
    speech: Speech
    segment: Segment
    pixels: NDArray[np.uint8]
    picture: Picture


@dataclass(frozen=True, slots=True)
class DrawnPreview:
    """The one frame's avatar and drawn face."""

    avatar: AvatarBlock
    drawn: DrawnFaces


def pick_preview_frame(
    job: OpenJob,
    detector: LandmarkDetector,
    audio_encoder: AudioEncoder,
    needs_parse_inputs: bool,
) -> PreviewFrame:
    """Find a frame with a face and the loudest sound of the first segment.

    Raises:
        NoFaceFound: none of the sampled frames has a face.
    """
    # A preview shows a single frame, which has no neighbours to average its box with.
    face_options = replace(job.options.face, box_smoothing=0)
    job = replace(job, options=replace(job.options, face=face_options))
    spoken = job.plan.segments[0]
    for frame in sorted({0, *spread(job.plan.blocks[-1].end, SAMPLED_FRAMES - 1)}):
        block = Block(0, frame, frame + 1)
        prepared = prepare_block(job, block, detector, needs_parse_inputs=needs_parse_inputs)
        [face] = prepared.faces
        if face is None:
            continue
        speech = audio_encoder.encode(job.audio, job.plan.fps, spoken, job.options.speech)
        loudest = int(np.argmax(speech.loudness))
        one = slice(loudest, loudest + 1)
        [pixels] = read_frames(job.source, job.picture, frame, frame + 1)
        return PreviewFrame(
            prepared=prepared,
            face=face,
            speech=Speech(speech.features[one], speech.loudness[one]),
            segment=Segment(0, spoken.start + loudest, spoken.start + loudest + 1, 0, frame, 1),
            pixels=pixels,
            picture=job.picture,
        )
    require_face(0, job.plan)
    raise AssertionError("unreachable: require_face raises")


def draw_preview(frame: PreviewFrame, engine: Engine, options: JobOptions) -> DrawnPreview:
    """Let the engine draw the one face."""
    avatar = engine.encode(frame.prepared, options.mask)
    drawn = engine.generate(avatar, frame.speech, frame.segment, options.speech)
    return DrawnPreview(avatar, drawn)


def compose_preview(frame: PreviewFrame, drawn: DrawnPreview, options: JobOptions) -> Preview:
    """Paste the drawn face into the frame."""
    picture, pixels = frame.picture, frame.pixels.copy()
    [weight] = drawn.drawn.weights
    for face_pixels in drawn.drawn.faces:  # one, or none if the mouth rests
        face = DrawnFace(
            pixels=face_pixels,
            replace=unpack_mask(drawn.avatar.masks[0]),
            blur=options.mask.blur,
            weight=float(weight),
        )
        redraw(pixels, picture, frame.face, face)
    bgr = to_bgr(pixels, picture.width, picture.height, picture.colour)
    return Preview(bgr, frame.face, frame.prepared.block.start)
