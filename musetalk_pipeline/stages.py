"""The stages of a job that work on pixels without a network of ours; none keeps anything.

    open_job       both files ─► what they are, the output picture, the plan
    prepare_block  a block of source frames ─► faces and crops
    compose_segment  an avatar and its drawn faces ─► an encoded piece

`Listener.listen`, `Engine.encode` and `Engine.generate` lie between them, `encode.stitch` after.
Memory is bounded by one block: `block_seconds` keeps blocks of large pictures short.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
)
from musetalk_pipeline.boxes import Box, crop_box
from musetalk_pipeline.errors import (
    AudioTooShort,
    InvalidOptions,
    JobCancelled,
    ModelLoadFailed,
    NoFaceFound,
)
from musetalk_pipeline.faces import shared_mesh
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.faces.tracks import face_of, smooth
from musetalk_pipeline.media.decode import frame_bytes, read_frames
from musetalk_pipeline.media.encode import PieceEncoder
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.media.reader import Frames, ReadFrames
from musetalk_pipeline.media.soundtrack import open_audio
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pixels.blend import paste_face, soft_mask, unpack_mask
from musetalk_pipeline.pixels.colour import BgrFrames, to_bgr, write_bgr
from musetalk_pipeline.pixels.crops import FACE_SIDE, PARSE_SIDE, face_crop, parse_input
from musetalk_pipeline.pixels.picture import fit_picture, size_warnings, target_size, whole_picture
from musetalk_pipeline.plan import (
    BLOCK_S,
    Block,
    FramePlan,
    Segment,
    count_output_frames,
    plan_frames,
    playing_fps,
    speech_fps,
)
from musetalk_pipeline.survey import Crowd, survey
from musetalk_pipeline.watch import Check, go_on

BLOCK_BYTES = 384 << 20  # decoded frames of one block: 2 s of 1080p at 60 fps fit (356 MiB)
MIN_FPS = 1  # of the option `fps`; fewer are no video


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job whose media have been checked: everything that is decided before the first block.

    `warnings`: sentences for whoever sent the job, about what was decided for them.
    """

    source: SourceVideo
    audio: SpeechAudio
    picture: Picture
    plan: FramePlan
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256, in hex, of a job's two files."""

    video: str
    audio: str


def open_job(
    video_path: Path,
    audio_path: Path,
    work_dir: Path,
    options: JobOptions,
    limits: MediaLimits,
    detector: LandmarkDetector,
    *,
    digests: Digests | None = None,
    block_s: float = BLOCK_S,
) -> OpenJob:
    """Check both files, choose the output picture and plan the job. Writes into `work_dir` only.

    `digests`: those of the files where they are known already; the files are read for them if not.
    `detector` is asked about a few frames, so that a video without any face is refused here.
    `block_s`: seconds of source in one block; less, where large pictures would not fit.

    Raises:
        MediaError: the input cannot be used; the sentence says why. Do not send it again.
    """
    source, audio = _open_both(video_path, audio_path, work_dir, options, limits, digests)
    fps = playing_fps(source.fps, options.frame.fps)
    n_output = count_output_frames(audio.n_samples, speech_fps(fps, options.speech.frame_rate))
    if n_output < 1:
        raise AudioTooShort(
            f"The audio is {audio.duration_s * 1000:.0f} ms long, less than one frame of a video "
            f"with {float(fps):.3g} frames a second. Send longer audio.",
            duration_s=audio.duration_s,
        )
    reached, is_cropped = min(source.n_frames, n_output), options.frame.fit == "crop"
    # As the run will see the frames; only where the face decides that, in the source's own size.
    looked_at = whole_picture(source) if is_cropped else fit_picture(source, options.frame, ())
    seen = survey(source, looked_at, reached, fps, detector, _crowd(), is_cropped)
    picture = fit_picture(source, options.frame, seen.faces)
    plan = plan_frames(source.n_frames, n_output, fps, block_seconds(picture, fps, block_s))
    warnings = (*size_warnings(source, options.frame), *seen.warnings)
    return OpenJob(source, audio, picture, plan, warnings)


def _crowd() -> Crowd | None:
    """Return what counts faces. A worker with another detector may come without its networks."""
    try:
        return shared_mesh()
    except ModelLoadFailed:
        return None


def _open_both(
    video_path: Path,
    audio_path: Path,
    work_dir: Path,
    options: JobOptions,
    limits: MediaLimits,
    digests: Digests | None,
) -> tuple[SourceVideo, SpeechAudio]:
    """Check both files at a time. What is wrong with the video is said first, as if one by one."""
    is_over = threading.Event()

    def check() -> None:
        if is_over.is_set():
            raise JobCancelled("The video cannot be used.")

    with ThreadPoolExecutor(1, thread_name_prefix="sound") as other:
        kbps = options.encode.audio_bitrate_kbps
        known = (None, None) if digests is None else (digests.video, digests.audio)
        sound = other.submit(open_audio, audio_path, work_dir, limits, kbps, check, sha256=known[1])
        try:
            source = probe_video(video_path, limits, work_dir, sha256=known[0])
            target_size(source.width, source.height, options.frame)
            _check_fps(options.frame.fps, limits)
            return source, sound.result()
        finally:
            is_over.set()


def _check_fps(fps: float | None, limits: MediaLimits) -> None:
    if fps is not None and not MIN_FPS <= fps <= limits.max_fps:
        raise InvalidOptions(
            f"{fps:g} frames a second cannot be made: {MIN_FPS} to {limits.max_fps:g} are "
            "accepted.",
            hint="Leave `fps` out to play the video at its own rate.",
        )


def block_seconds(picture: Picture, fps: Fraction, wanted_s: float = BLOCK_S) -> float:
    """Return how long a block is: `wanted_s`, as far as its decoded frames fit `BLOCK_BYTES`."""
    frames = max(1, BLOCK_BYTES // frame_bytes(picture.width, picture.height))
    return min(wanted_s, float(frames / fps))


def prepare_block(
    job: OpenJob,
    block: Block,
    detector: LandmarkDetector,
    options: JobOptions,
    needs_parse_inputs: bool,
    check: Check = go_on,
    read: ReadFrames | None = None,
    decoded: deque[NDArray[np.uint8]] | None = None,
) -> PreparedBlock:
    """Decode a block, find its faces and cut out what the networks see.

    With `box_smoothing`, neighbouring frames of other blocks are looked at too, so that the result
    does not depend on where the block begins. `check` raises once nobody wants the result. `read`:
    a running reader, for those who prepare one block after the other. `decoded` receives the
    block's frames, for those who compose them in the same process.

    Raises:
        NoFaceFound: a frame of the block has no face, and `faceless` is `refuse`.
    """
    started = time.monotonic()
    reach = options.face.box_smoothing
    last = job.plan.blocks[-1].end
    first_seen, end_seen = max(0, block.start - reach), min(last, block.end + reach)
    read = read or partial(read_frames, job.source, job.picture)
    frames = list(_checked(read(first_seen, end_seen), check))
    inner = slice(block.start - first_seen, block.end - first_seen)
    # Three calls, because whether a face is present may be decided over all frames of a call.
    found = [
        landmarks
        for part in (slice(0, inner.start), inner, slice(inner.stop, None))
        if frames[part]
        for landmarks in detector.detect(BgrFrames(frames[part], job.picture, check))
    ]
    size = job.picture.width, job.picture.height
    faces = smooth([face_of(landmarks, *size, options.face) for landmarks in found], reach)
    block_faces = tuple(faces[inner])
    if options.face.faceless == "refuse":
        _require_every_face(job.source, block, block_faces)
    crops, parse_inputs = _cut_out(frames[inner], block_faces, job.picture, needs_parse_inputs)
    if decoded is not None:
        decoded.extend(frames[inner])
    return PreparedBlock(block, block_faces, crops, parse_inputs, time.monotonic() - started)


def compose_segment(
    job: OpenJob,
    segment: Segment,
    avatar: AvatarBlock,
    drawn: DrawnFaces,
    options: JobOptions,
    threads: int = 1,
    check: Check = go_on,
    read: ReadFrames | None = None,
    decoded: deque[NDArray[np.uint8]] | None = None,
) -> Piece:
    """Decode the frames of a segment again, put the drawn faces in, and encode them once.

    Frames without a face pass through untouched, at their own index. `threads`: of the encoder.
    `check` raises once nobody wants the result. `read`: a running reader, for those who compose one
    segment after the other. `decoded`: the segment's frames, if they are still at hand; it is
    emptied, and they are drawn into.
    """
    started = time.monotonic()
    rows = avatar.rows(segment)
    next_drawn = iter(zip(drawn.faces, drawn.weights, strict=True))
    with (
        closing(_frames_in_order(job, segment, check, read, decoded)) as frames,
        PieceEncoder(job.picture, job.plan.fps, options.encode, threads=threads) as encoder,
    ):
        for frame, source_frame, row in zip(frames, segment.source_frames(), rows, strict=True):
            face = avatar.faces[source_frame - avatar.block.start]
            if face is not None and row is not None:
                picture, weight = next(next_drawn)
                replace = unpack_mask(avatar.masks[row])
                redraw(frame, job.picture, face, replace, picture, float(weight), options.mask.blur)
            encoder.add(frame)
        data = encoder.finish()
    return Piece(segment, data, time.monotonic() - started)


def _checked(frames: Frames, check: Check) -> Frames:
    """Pass frames on, asking before each; closing it closes `frames` and so ends their child."""
    with closing(frames):
        for frame in frames:
            check()
            yield frame


def redraw(
    frame: NDArray[np.uint8],
    picture: Picture,
    face: Face,
    replace: NDArray[np.uint8],
    drawn: NDArray[np.uint8],
    weight: float,
    blur: float,
) -> None:
    """Blend a drawn face into an I420 frame, in place; all other pixels keep their bytes."""
    mask = soft_mask(replace, face.box, blur)
    # With `edges: stretch` a box may leave the frame; what is drawn out there is lost.
    mask = mask and mask.clipped(picture.width, picture.height)
    if mask is None or weight <= 0.0:
        return
    region = _even(mask.box)
    before = to_bgr(frame, picture.width, picture.height, picture.colour, region)
    bgr = before.copy()
    paste_face(bgr, region, drawn, face.box, mask, weight)
    write_bgr(frame, region, bgr, before, picture.colour)


def require_face(frames_with_face: int, plan: FramePlan) -> None:
    """Refuse a job in which no block had a face; to be asked before anything is stored.

    Raises:
        NoFaceFound: always the input's fault.
    """
    if frames_with_face == 0:
        raise NoFaceFound(
            "No face was found in any frame that the audio reaches. Use a video in which a face is "
            "visible from the front.",
            frames=plan.n_output,
        )


def _require_every_face(source: SourceVideo, block: Block, faces: Sequence[Face | None]) -> None:
    for frame, face in enumerate(faces, block.start):
        if face is None:
            at_s = float(frame / source.fps)
            raise NoFaceFound(
                f"Frame {frame} of the video, at {at_s:.2f} s, shows no face, and the option "
                "`faceless` is `refuse`. Cut the video there, or send `pass` to leave such frames "
                "as they are.",
                hint="Cut the video there, or leave `faceless` out.",
                frame=frame,
                at_s=round(at_s, 3),
            )


def _cut_out(
    frames: Sequence[NDArray[np.uint8]],
    faces: Sequence[Face | None],
    picture: Picture,
    needs_parse_inputs: bool,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the face crops and the parser's inputs of the frames with a face."""
    present = [(frame, face.box) for frame, face in zip(frames, faces, strict=True) if face]
    n_parsed = len(present) if needs_parse_inputs else 0
    crops = np.empty((len(present), FACE_SIDE, FACE_SIDE, 3), np.uint8)
    parse_inputs = np.empty((n_parsed, PARSE_SIDE, PARSE_SIDE, 3), np.uint8)
    for row, (frame, box) in enumerate(present):
        around = crop_box(box) if needs_parse_inputs else box
        region = _even(around.clipped(picture.width, picture.height))
        bgr = to_bgr(frame, picture.width, picture.height, picture.colour, region)
        inner = Box(box.x0 - region.x0, box.y0 - region.y0, box.x1 - region.x0, box.y1 - region.y0)
        crops[row] = face_crop(bgr, inner)
        if needs_parse_inputs:
            parse_inputs[row] = parse_input(bgr, inner)
    return crops, parse_inputs


def _frames_in_order(
    job: OpenJob,
    segment: Segment,
    check: Check,
    read: ReadFrames | None,
    decoded: deque[NDArray[np.uint8]] | None,
) -> Frames:
    """Yield the source frames of a segment in output order.

    Video decodes forwards only, so a segment on the way back is held in memory and given out from
    its end, each frame let go at once.
    """
    if decoded is not None:
        while decoded:
            check()
            yield decoded.popleft()
        return
    shown = segment.source_frames()
    alone = partial(read_frames, job.source, job.picture)
    if segment.turns is not None:
        kept = list(_checked(alone(0, segment.turns), check))
        # Copies: a frame may be shown again, and what is drawn into it is for one showing.
        yield from (kept[frame].copy() for frame in shown)
        return
    if segment.step > 0:
        yield from _checked((read or alone)(shown[0], shown[-1] + 1), check)
        return
    # A running reader would not run on from here: the next segment lies before this one.
    held = list(_checked(alone(shown[-1], shown[0] + 1), check))
    while held:
        yield held.pop()


def _even(box: Box) -> Box:
    """Return the smallest box with even corners around `box`; a picture's own sides are even."""
    return Box(box.x0 & ~1, box.y0 & ~1, (box.x1 + 1) & ~1, (box.y1 + 1) & ~1)
