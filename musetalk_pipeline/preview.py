"""One composited frame with its boxes, to see quickly what the options do."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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
from musetalk_pipeline.boxes import Box, crop_box
from musetalk_pipeline.contact_sheet import spread
from musetalk_pipeline.engines.interface import AudioEncoder, Engine
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.face_choice import MOST_FACES
from musetalk_pipeline.faces import shared_mesh
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.job_media import JobFiles
from musetalk_pipeline.media.decode import read_frames
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pipeline import Tools
from musetalk_pipeline.pixels.blend import unpack_mask
from musetalk_pipeline.pixels.colour import to_bgr
from musetalk_pipeline.pixels.picture import is_shown, to_source
from musetalk_pipeline.plan import Block, Segment
from musetalk_pipeline.stages import (
    DrawnFace,
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
    """`frame`: (H, W, 3) uint8 BGR, composited, nothing drawn over it. `source_frame`: which.
    `visible`: all faces of that frame that could be chosen, the largest first, in pixels of the
    displayed source; empty if nothing here can find them.
    """

    frame: NDArray[np.uint8]
    face: Face
    source_frame: int
    visible: tuple[Box, ...] = ()

    def marked(self) -> NDArray[np.uint8]:
        """Return the frame with the face box (green) and the crop box (amber) drawn into it."""
        marked = self.frame.copy()
        for face in self.face.of_frame:
            for box, colour in ((crop_box(face.box), CROP_COLOUR), (face.box, FACE_COLOUR)):
                cv2.rectangle(marked, (box.x0, box.y0), (box.x1 - 1, box.y1 - 1), colour, 2)
        return marked

    def png(self, *, has_boxes: bool = True) -> bytes:
        """Return the frame as a PNG file, marked or as it is."""
        is_made, data = cv2.imencode(".png", self.marked() if has_boxes else self.frame)
        assert is_made, "a picture of a checked size can always be written as PNG"
        return data.tobytes()


def make_preview(
    video_path: Path,
    audio_path: Path,
    options: JobOptions,
    tools: Tools,
    *,
    others: Mapping[str, Path] | None = None,
) -> Preview:
    """Draw one frame, the first of a few that has a face, with the loudest sound of the first
    block. `others`: see `pipeline.run`.

    Raises:
        NoFaceFound: none of the sampled frames has a face.
        MediaError, ProcessingError: as `pipeline.run`.
    """
    with tempfile.TemporaryDirectory(prefix="lipsync-", ignore_cleanup_errors=True) as folder:
        files = JobFiles(video_path, audio_path, others=others or {})
        job = open_job(files, Path(folder), options, MediaLimits(), tools.detector, follows=False)
        needs_parse_inputs = tools.engine.needs_parse_inputs
        frame = pick_preview_frame(job, tools.detector, tools.audio_encoder, needs_parse_inputs)
        return compose_preview(frame, draw_preview(frame, tools.engine, options), options)


@dataclass(frozen=True, slots=True)
class PreviewFrame:
    """What the engine and the paste need of one frame. `pixels`: I420 of the `picture`. `visible`:
    as in Preview.
    """

    prepared: PreparedBlock
    face: Face
    speech: Speech
    segment: Segment
    pixels: NDArray[np.uint8]
    picture: Picture
    visible: tuple[Box, ...] = ()


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
    spoken = next(segment for segment in job.plan.segments if segment.block is not None)
    for frame in _candidates(job):
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
            visible=_visible(job, pixels),
        )
    require_face(0, job.plan)
    raise AssertionError("unreachable: require_face raises")


def _candidates(job: OpenJob) -> list[int]:
    """Return the frames that may be shown, the one in which a person was chosen first."""
    choice, shown = job.options.face.face, job.plan.prepared
    spread_out = [shown[at] for at in sorted({0, *spread(len(shown), SAMPLED_FRAMES - 1)})]
    if isinstance(choice, str) or choice.frame not in shown:
        return spread_out
    return [choice.frame, *spread_out]


def _visible(job: OpenJob, pixels: NDArray[np.uint8]) -> tuple[Box, ...]:
    """Return the faces of a frame, in pixels of the displayed source."""
    try:
        mesh = shared_mesh()
    except ModelLoadFailed:
        return ()
    bgr = to_bgr(pixels, job.picture.width, job.picture.height, job.picture.colour)
    return tuple(
        to_source(box, job.source, job.picture)
        for box, _ in mesh.all_faces(bgr, most_boxes=2 * MOST_FACES)
        if is_shown(box, job.picture)
    )


def draw_preview(frame: PreviewFrame, engine: Engine, options: JobOptions) -> DrawnPreview:
    """Let the engine draw the one face."""
    avatar = engine.encode(frame.prepared, options.mask)
    drawn = engine.generate(avatar, frame.speech, frame.segment, options.speech)
    return DrawnPreview(avatar, drawn)


def compose_preview(frame: PreviewFrame, drawn: DrawnPreview, options: JobOptions) -> Preview:
    """Paste the drawn face into the frame."""
    picture, pixels = frame.picture, frame.pixels.copy()
    next_drawn = iter(drawn.drawn.faces)  # a mouth that rests is not drawn
    for row, (face, weight) in enumerate(
        zip(frame.face.of_frame, drawn.drawn.weights, strict=True)
    ):
        if weight > 0:
            mask = unpack_mask(drawn.avatar.masks[row])
            new = DrawnFace(next(next_drawn), mask, options.mask.blur, float(weight))
            redraw(pixels, picture, face, new)
    bgr = to_bgr(pixels, picture.width, picture.height, picture.colour)
    return Preview(bgr, frame.face, frame.prepared.block.start, frame.visible)
