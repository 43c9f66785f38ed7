"""The stages of a job that work on pixels without a network of ours. None of them keeps anything.

    open_job         both files ─► what they are, the output picture, the plan
    prepare_block    a block of source frames ─► faces and crops
    compose_segment  an avatar and its drawn faces ─► an encoded piece

`AudioEncoder.encode`, `Engine.encode` and `Engine.generate` lie between them, and `encode.stitch`
comes last. Memory is bounded by one block; `block_seconds` keeps blocks of large pictures short.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import (
    AvatarBlock,
    DrawnFaces,
    Face,
    Picture,
    Piece,
    PreparedBlock,
    SourceVideo,
    SpeechAudio,
    in_rows,
)
from musetalk_pipeline.errors import NoFaceFound
from musetalk_pipeline.face_search import FaceSearch
from musetalk_pipeline.faces.block_faces import (
    all_faces,
    chosen_faces,
    prominent_faces,
    require_every_face,
)
from musetalk_pipeline.faces.detector import LandmarkDetector, Landmarks
from musetalk_pipeline.faces.face_boxes import faces_of, smooth
from musetalk_pipeline.job_media import Digests, JobFiles, open_media
from musetalk_pipeline.media.decode import frame_bytes, read_frames
from musetalk_pipeline.media.encode import PieceEncoder
from musetalk_pipeline.media.reader import Frames, ReadFrames
from musetalk_pipeline.media.segment_frames import checked, frames_in_order
from musetalk_pipeline.media.shared_readers import ReaderOf
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pixels.blend import paste_face, soft_mask, unpack_mask
from musetalk_pipeline.pixels.colour import BgrFrames, to_bgr, write_bgr
from musetalk_pipeline.pixels.crops import cut_out, even_box
from musetalk_pipeline.pixels.picture import fit_picture, size_warnings, to_picture
from musetalk_pipeline.plan import BLOCK_S, Block, FramePlan, Segment, plan_order, playing_fps
from musetalk_pipeline.survey import KnownSurveys, Survey
from musetalk_pipeline.track import Track
from musetalk_pipeline.watch import Check, go_on

BLOCK_BYTES = 384 << 20  # decoded frames of one block: 2 s of 1080p at 60 fps fit (356 MiB)


@dataclass(frozen=True, slots=True)
class BlockSize:
    """How long a block is: `seconds` of source, or less if its frames would exceed `max_bytes`."""

    seconds: float = BLOCK_S
    max_bytes: int = BLOCK_BYTES


DEFAULT_BLOCKS = BlockSize()


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job whose media have been checked, and everything that is decided before the first block.

    `warnings`: sentences for whoever sent the job, about what was decided for them. `track`: where
    the chosen person is; None if none was chosen. `others`: the SHA-256 of the sounds of segments.
    `followed`: the frames that were read to follow that person.
    """

    source: SourceVideo
    audio: SpeechAudio
    picture: Picture
    plan: FramePlan
    options: JobOptions
    warnings: tuple[str, ...] = ()
    track: Track | None = None
    others: tuple[str, ...] = ()
    followed: int = 0

    @property
    def digests(self) -> Digests:
        """The digests of all files that it was opened with."""
        return Digests(self.source.sha256, self.audio.sha256, self.others)


def open_job(
    files: JobFiles,
    work_dir: Path,
    options: JobOptions,
    limits: MediaLimits,
    detector: LandmarkDetector,
    *,
    block_size: BlockSize = DEFAULT_BLOCKS,
    known_surveys: KnownSurveys | None = None,
    read_for: ReaderOf | None = None,
    follows: bool = True,
    check: Check = go_on,
) -> OpenJob:
    """Check both files, choose the output picture and plan the job. Writes into `work_dir` only.

    `detector` searches a few frames, so that a video without any face is refused here.
    `known_surveys`: of the same video and options, which save that search. `read_for`: returns what
    reads the frames that are searched; None starts decoders that end with this call. `follows`: a
    chosen person is followed through the video; if not, only the frame of the choice is searched.
    `check` raises once the result is no longer needed.

    Raises:
        MediaError: the input cannot be used; the message says why. Do not send it again.
    """
    media = open_media(files, work_dir, options, limits)
    source, order = media.source, media.timeline.order
    fps = playing_fps(source.fps, options.frame.fps)
    shown = media.timeline.searched
    search = FaceSearch(source, options, shown, known_surveys, read_for)
    found, followed = _search(search, detector, fps, check, follows=follows)
    picture = fit_picture(source, options.frame, found.faces)
    block_s = block_seconds(picture, fps, block_size)
    plan = plan_order(order, fps, block_s, media.timeline.drawn)
    own_warnings = (*size_warnings(source, options.frame), *media.timeline.warnings)
    warnings = (*own_warnings, *found.warnings)
    made_of = media.audio, picture, plan, options
    return OpenJob(source, *made_of, warnings, found.track, media.others, followed)


def _search(
    search: FaceSearch, detector: LandmarkDetector, fps: Fraction, check: Check, *, follows: bool
) -> tuple[Survey, int]:
    """Return a known survey or make one, and the frames through which a person was followed."""
    choice = search.options.face.face
    if not isinstance(choice, str) and not follows:
        return search.of_one_frame(choice), 0
    if (known := search.known_survey(fps)) is not None:
        return known, 0
    if isinstance(choice, str):
        return search.for_faces(detector, fps), 0
    return search.for_person(choice, fps, check), search.followed()


def block_seconds(
    picture: Picture,
    fps: Fraction,
    size: BlockSize = DEFAULT_BLOCKS,
) -> float:
    """Return how many seconds of source one block has."""
    frames = max(1, size.max_bytes // frame_bytes(picture.width, picture.height))
    return min(size.seconds, float(frames / fps))


def prepare_block(
    job: OpenJob,
    block: Block,
    detector: LandmarkDetector,
    *,
    needs_parse_inputs: bool,
    read: ReadFrames | None = None,
    check: Check = go_on,
) -> PreparedBlock:
    """Decode a block, find its faces and cut out what the networks see.

    With `box_smoothing`, faces are also searched in neighbouring frames of other blocks, so that
    the result does not depend on where the block begins. `read`: reads ranges of the job's frames;
    None starts a decoder. `check` raises once the result is no longer needed.

    Raises:
        NoFaceFound: a frame of the block has no face, and `faceless` is `refuse`.
    """
    options = job.options.face
    reach = options.box_smoothing
    first_seen, end_seen = job.plan.seen(block, reach)
    read = read or partial(read_frames, job.source, job.picture)
    frames = list(checked(read(first_seen, end_seen), check))
    inner = slice(block.start - first_seen, block.end - first_seen)
    bgr = BgrFrames(frames, job.picture, check)
    found = _landmarks(job, bgr, first_seen, inner, detector)
    size = job.picture.width, job.picture.height
    faces = smooth([faces_of(landmarks, *size, options) for landmarks in found], reach)
    block_faces = tuple(faces[inner])
    if options.faceless == "refuse":
        is_chosen = job.track is not None
        require_every_face(job.source, block, block_faces, is_chosen=is_chosen)
    crops, parse_inputs = cut_out(frames[inner], block_faces, job.picture, needs_parse_inputs)
    return PreparedBlock(block, block_faces, crops, parse_inputs)


def _landmarks(
    job: OpenJob, frames: BgrFrames, first: int, inner: slice, detector: LandmarkDetector
) -> list[list[Landmarks]]:
    """Return what is redrawn in each of the frames from `first` on; `inner`: those of the block."""
    if job.track is not None:
        boxes = [job.track.at(number) for number in range(first, first + len(frames))]
        places = [box and to_picture(box, job.source, job.picture) for box in boxes]
        return chosen_faces(frames, places, detector)
    if job.options.face.face == "all":
        return all_faces(frames, job.picture, detector)
    return prominent_faces(frames, inner, detector)


def compose_segment(
    job: OpenJob,
    avatar: AvatarBlock,
    drawn: DrawnFaces,
    *,
    frames: Frames | None = None,
    threads: int = 1,
    check: Check = go_on,
) -> Piece:
    """Put the drawn faces of a segment into its frames, and encode them once.

    Frames without a face pass through untouched, at their own index. `frames`: the segment's source
    frames in output order, which are drawn into; None decodes them. `threads`: of the encoder.
    `check` raises once the result is no longer needed.
    """
    segment = drawn.segment
    rows = avatar.rows(segment)
    next_drawn, next_weight = iter(drawn.faces), iter(drawn.weights)
    if frames is None:
        frames = frames_in_order(job.source, job.picture, segment, check=check)
    with (
        closing(checked(frames, check)) as ordered,
        PieceEncoder(job.picture, job.plan.fps, job.options.encode, threads=threads) as encoder,
    ):
        for frame, source_frame, of_frame in zip(
            ordered, segment.source_frames(), rows, strict=True
        ):
            faces = in_rows([avatar.faces[source_frame - avatar.block.start]])
            for face, row in zip(faces, of_frame, strict=True):
                weight = float(next(next_weight))
                if weight > 0:
                    mask = unpack_mask(avatar.masks[row])
                    new = DrawnFace(next(next_drawn), mask, job.options.mask.blur, weight)
                    redraw(frame, job.picture, face, new)
            encoder.add(frame)
        data = encoder.finish()
    return Piece(segment, data, sum(map(bool, rows)))


def compose_source(
    job: OpenJob,
    segment: Segment,
    *,
    read: ReadFrames | None = None,
    threads: int = 1,
    check: Check = go_on,
) -> Piece:
    """Encode a segment that draws on no block: the source's frames as they are, none of them
    counted as a frame with a face. `read`, `threads`, `check`: see `compose_segment`.
    """
    frames = frames_in_order(job.source, job.picture, segment, read=read, check=check)
    with (
        closing(frames),
        PieceEncoder(job.picture, job.plan.fps, job.options.encode, threads=threads) as encoder,
    ):
        for frame in frames:
            encoder.add(frame)
        data = encoder.finish()
    return Piece(segment, data, 0)


@dataclass(frozen=True, slots=True)
class DrawnFace:
    """One drawn face and how it is blended in.

    `pixels`: (256, 256, 3) uint8 BGR, which fill the face box. `replace`: (512, 512) uint8 mask of
    the face's crop box, 0 or 255. `blur`: of the mask, in crop widths. `weight`: above 0 and at
    most 1, how much of the drawn face replaces the source.
    """

    pixels: NDArray[np.uint8]
    replace: NDArray[np.uint8]
    blur: float
    weight: float = 1.0


def redraw(frame: NDArray[np.uint8], picture: Picture, face: Face, drawn: DrawnFace) -> None:
    """Blend a drawn face into an I420 frame, in place; all other pixels keep their bytes."""
    mask = soft_mask(drawn.replace, face.box, drawn.blur)
    # With `edges: stretch` a box may leave the frame; what is drawn out there is lost.
    mask = mask and mask.clipped(picture.width, picture.height)
    if mask is None:
        return
    region = even_box(mask.box)
    before = to_bgr(frame, picture.width, picture.height, picture.colour, region)
    bgr = before.copy()
    paste_face(bgr, region, drawn.pixels, face.box, mask, drawn.weight)
    write_bgr(frame, region, bgr, before, picture.colour)


def require_face(frames_with_face: int, plan: FramePlan) -> None:
    """Refuse a job in which no block had a face. Call it before anything is stored.

    Raises:
        NoFaceFound: always the input's fault.
    """
    if frames_with_face == 0:
        raise NoFaceFound(
            "No face was found in any frame that the audio reaches. Use a video in which a face is "
            "visible from the front.",
            frames=plan.n_output,
        )
