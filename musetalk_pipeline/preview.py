"""One composited frame with its boxes: a quick look at what the options do."""

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
from musetalk_pipeline.engines.interface import Engine, Listener
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pipeline import Tools
from musetalk_pipeline.pixels.blend import unpack_mask
from musetalk_pipeline.pixels.colour import to_bgr
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
        glimpse = take_glimpse(
            job, options, tools.detector, tools.listener, tools.engine.needs_parse_inputs
        )
        return show_glimpse(glimpse, draw_glimpse(glimpse, tools.engine, options), options)


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What the engine and the paste need of one frame. `pixels`: I420 of the `picture`."""

    prepared: PreparedBlock
    face: Face
    speech: Speech
    segment: Segment
    pixels: NDArray[np.uint8]
    picture: Picture


@dataclass(frozen=True, slots=True)
class DrawnGlimpse:
    """The one frame's avatar and drawn face."""

    avatar: AvatarBlock
    drawn: DrawnFaces


def take_glimpse(
    job: OpenJob,
    options: JobOptions,
    detector: LandmarkDetector,
    listener: Listener,
    needs_parse_inputs: bool,
) -> Glimpse:
    """Find a frame with a face and the loudest sound of the first segment.

    Raises:
        NoFaceFound: none of the frames looked at has a face.
    """
    # A preview shows single frames, which have no neighbours to average with.
    options = replace(options, face=replace(options.face, box_smoothing=0))
    heard = job.plan.segments[0]
    for frame in sorted({0, *spread(job.plan.blocks[-1].end, LOOKS - 1)}):
        block = Block(0, frame, frame + 1)
        prepared = prepare_block(job, block, detector, options, needs_parse_inputs)
        [face] = prepared.faces
        if face is None:
            continue
        speech = listener.listen(job.audio, job.plan.fps, heard, options.speech)
        loudest = int(np.argmax(speech.loudness))
        one = slice(loudest, loudest + 1)
        [pixels] = read_frames(job.source, job.picture, frame, frame + 1)
        return Glimpse(
            prepared=prepared,
            face=face,
            speech=Speech(speech.features[one], speech.loudness[one], 0.0),
            segment=Segment(0, heard.start + loudest, heard.start + loudest + 1, 0, frame, 1),
            pixels=pixels,
            picture=job.picture,
        )
    require_face(0, job.plan)
    raise AssertionError("unreachable: require_face raises")


def draw_glimpse(glimpse: Glimpse, engine: Engine, options: JobOptions) -> DrawnGlimpse:
    """Let the engine draw the one face."""
    avatar = engine.encode(glimpse.prepared, options.mask)
    return DrawnGlimpse(
        avatar, engine.generate(avatar, glimpse.speech, glimpse.segment, options.speech)
    )


def show_glimpse(glimpse: Glimpse, drawn: DrawnGlimpse, options: JobOptions) -> Preview:
    """Paste the drawn face into the frame."""
    picture, pixels = glimpse.picture, glimpse.pixels.copy()
    mask = unpack_mask(drawn.avatar.masks[0])
    weight = float(drawn.drawn.weights[0])
    redraw(pixels, picture, glimpse.face, mask, drawn.drawn.faces[0], weight, options.mask.blur)
    frame = to_bgr(pixels, picture.width, picture.height, picture.colour)
    return Preview(frame, glimpse.face, glimpse.prepared.block.start)
