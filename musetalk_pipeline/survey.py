"""Samples a few frames of a video before a job begins: whether they show faces, where, how many.

    no frame shows a face  ─► NoFaceFound, after some seconds instead of all frames
    faces                  ─► the window of `fit=crop`
    several in one frame   ─► a warning that says which of them speaks

If a request chooses a person, all frames are read instead, and the person is followed through them.

A face that is visible for a whole second is never missed in the first minute of a video. Of a
longer one, `MAX_SAMPLES` frames are searched, however long it is (docs/landmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.boxes import Box, face_box
from musetalk_pipeline.errors import FaceNotFound, InvalidOptions, ModelLoadFailed, NoFaceFound
from musetalk_pipeline.face_choice import FacePlace
from musetalk_pipeline.faces import shared_mesh
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.faces.following import follow, track_of
from musetalk_pipeline.faces.tracklets import Pace, TrackletFinder, hit
from musetalk_pipeline.media.reader import ReadFrames
from musetalk_pipeline.pixels.colour import BgrFrames
from musetalk_pipeline.pixels.picture import to_picture, to_source
from musetalk_pipeline.track import Track
from musetalk_pipeline.watch import Check, go_on

MIN_SAMPLES, MAX_SAMPLES = 9, 60
SAMPLES_PER_S = 1
CROP_SAMPLES = 5  # frames that place the window of `fit=crop`
PERSON_SAMPLES = 200  # frames with a chosen person that place that window
COUNTED_SAMPLES = 2  # frames in which faces are counted: each costs a job 0.1 to 0.2 s
MIN_RIVAL_SHARE = 0.15  # guess: of the speaker's area; smaller faces are background
ALIKE_SHARE = 0.8  # guess: areas this near to each other are "equally large"

REMEDY = "The option `face` chooses another."
_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five")


class FaceCounter(Protocol):
    """Finds every face that stands out in a frame; see `MeshDetector.faces`."""

    def faces(self, frame: NDArray[np.uint8]) -> list[Box]:
        """Return their boxes in pixels of the frame, the largest first."""
        ...


@dataclass(frozen=True, slots=True)
class Survey:
    """`faces`: boxes in displayed source pixels, for `fit=crop` only. `warnings`: sentences.
    `track`: where the chosen person is, if one was chosen.
    """

    faces: tuple[Box, ...]
    warnings: tuple[str, ...]
    track: Track | None = None


class KnownSurveys(Protocol):
    """The surveys of a video by earlier jobs with the same options, and by this one."""

    def find(self, reached: int, fps: Fraction, *, is_exact: bool) -> Survey | None:
        """Return one that is valid for this job too; None if there is none.

        If `is_exact`, as for a cropped picture, it must be of the same frames. Any other is valid
        if it reached no further, because a face that it found is among this job's frames.
        """
        ...

    def find_longer(self, reached: int, fps: Fraction) -> Survey | None:
        """Return one of these frames or, better, of more; None if there is none.

        Whoever was followed further was followed through this job's frames too.
        """
        ...

    def keep(self, reached: int, fps: Fraction, found: Survey) -> None:
        """Keep the survey of this job's frames for later jobs."""
        ...


def survey(
    read: ReadFrames,
    picture: Picture,
    detector: LandmarkDetector,
    *,
    reached: int,
    fps: Fraction,
    counter: FaceCounter | None,
    is_cropped: bool,
) -> Survey:
    """Search frames spread over the first `reached` of the source, until one shows a face.

    `read`: reads them as `picture`. `fps`: at which they are played. With `is_cropped`, five frames
    are searched in any case, and `picture` is the source unscaled. `counter`: None if nothing here
    can count faces; there is no warning about them then.

    Raises:
        NoFaceFound: none of the frames shows a face. The input's fault.
    """
    samples = _SampledFrames(read, picture, detector)
    if is_cropped:
        for place in evenly_spaced(reached, CROP_SAMPLES):
            samples.take(place)
    wanted = evenly_spaced(reached, sample_count(reached, fps))
    for place in spread_out(wanted):
        if samples.faces:
            break
        samples.take(place)
    if not samples.faces:
        raise NoFaceFound(
            f"No face was found in {len(samples.seen)} frames spread over the part of the video "
            "that the audio reaches. Use a video in which a face is visible from the front.",
            looks=len(samples.seen),
        )
    warning = _warn_of_others(samples, counter, reached) if counter else None
    return Survey(tuple(samples.in_source()) if is_cropped else (), (warning,) if warning else ())


def survey_person(
    read: ReadFrames,
    source: SourceVideo,
    picture: Picture,
    choice: FacePlace,
    shown: range,
    check: Check = go_on,
) -> Survey:
    """Follow the chosen person through the source frames that are shown.

    `read`: reads them as `picture`; the frame of the choice is read too, and those between.
    `check` is called before each frame.

    Raises:
        InvalidOptions: the video has no such frame.
        FaceNotFound: there is no face at that place. The message says where there are some.
        NoFaceFound: the person is in none of the frames that are shown.
    """
    if choice.frame >= source.n_frames:
        raise InvalidOptions(
            f"The option `face` names frame {choice.frame}, but the video ends with frame "
            f"{source.n_frames - 1}; frames count from 0.",
            frames=source.n_frames,
        )
    place, pace = to_picture(choice.place, source, picture), Pace.at(float(source.fps))
    finder = TrackletFinder(shared_mesh(), picture, pace, choice.frame, place)
    followed = frames_to_read(choice, shown)
    with closing(read(followed.start, followed.stop)) as frames:
        tracklets = finder.run(frames, followed.start, check)
    at = hit(place, [box for box, _ in finder.at_wanted])
    if at is None:
        raise _no_face_there(
            choice, [to_source(box, source, picture) for box, _ in finder.at_wanted]
        )
    mine = follow(tracklets, finder.at_wanted[at][1])
    track = track_of(mine, lambda box: to_source(box, source, picture))
    return survey_of(track, source, shown)


def frames_to_read(choice: FacePlace, shown: range) -> range:
    """Return the source frames through which a chosen person is followed: those that are shown, the
    frame of the choice, and those between.
    """
    return range(min(shown.start, choice.frame), max(shown.stop, choice.frame + 1))


def survey_of(track: Track, source: SourceVideo, shown: range) -> Survey:
    """Return what a track means for the source frames that are shown.

    Raises:
        NoFaceFound: the person is in none of them.
    """
    placing = shown[:: max(1, len(shown) // PERSON_SAMPLES)]
    return Survey(
        tuple(box for number in placing if (box := track.at(number)) is not None),
        _warn_of_absence(track, shown, source),
        track,
    )


def _no_face_there(choice: FacePlace, faces: Sequence[Box]) -> FaceNotFound:
    """Return the error for a place without a face. `faces`: those of that frame."""
    places = "; ".join(f"{b.x0}, {b.y0}, {b.width}, {b.height}" for b in faces)
    count = len(faces)
    number = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    found = f"{number} face was" if count == 1 else f"{number} faces were"
    where = f", at {places} (x, y, width, height)" if faces else ""
    return FaceNotFound(
        f"There is no face {choice}. {found} found in that frame{where}.",
        faces=count,
        boxes=places,
        frame=choice.frame,
    )


def _warn_of_absence(track: Track, shown: range, source: SourceVideo) -> tuple[str, ...]:
    """Return a sentence if the person is not in all of the frames.

    Raises:
        NoFaceFound: the person is in none.
    """
    visible = track.frames_within(shown.start, shown.stop)
    if not visible:
        raise NoFaceFound(
            "The chosen person was found in no frame that the audio reaches. Choose another one "
            "with `face`, or send longer audio.",
            hint="Choose a face in a frame that the audio reaches.",
        )
    if visible == len(shown):
        return ()
    seconds, all_seconds = float(visible / source.fps), float(len(shown) / source.fps)
    return (
        f"The chosen person was found in {seconds:.1f} of {all_seconds:.1f} s of the video; the "
        "other frames are shown as they are.",
    )


def face_counter() -> FaceCounter | None:
    """Return what counts faces; None on a worker that has another detector and not its networks."""
    try:
        return shared_mesh()
    except ModelLoadFailed:
        return None


def evenly_spaced(reached: int, count: int) -> list[int]:
    """Return up to `count` different frames of the first `reached`, evenly spread from 0 on."""
    return sorted({reached * k // count for k in range(count)})


def sample_count(reached: int, fps: Fraction) -> int:
    """Return how many frames of a video are searched before it is refused for lack of a face."""
    return min(MAX_SAMPLES, max(MIN_SAMPLES, math.ceil(reached / fps * SAMPLES_PER_S)))


def spread_out(wanted: Sequence[int]) -> Iterator[int]:
    """Yield the first, the middle, the quarters, …, so that any beginning is spread over all."""
    bits = max(1, (len(wanted) - 1).bit_length())
    for turned in range(1 << bits):
        place = int(f"{turned:0{bits}b}"[::-1], 2)
        if place < len(wanted):
            yield wanted[place]


class _SampledFrames:
    """Single frames of a source and the face in each; no frame is searched twice."""

    def __init__(self, read: ReadFrames, picture: Picture, detector: LandmarkDetector) -> None:
        self._read, self._picture, self._detector = read, picture, detector
        self.seen: set[int] = set()
        self.faces: dict[int, Box] = {}  # in pixels of the picture
        self.frames: dict[int, NDArray[np.uint8]] = {}  # I420, of those with a face

    def take(self, place: int) -> None:
        """Search one frame, unless that has been done."""
        if place in self.seen:
            return
        self.seen.add(place)
        frames = list(self._read(place, place + 1))
        [found] = self._detector.detect(BgrFrames(frames, self._picture))
        box = None if found is None else face_box(found.points) or found.box
        if box is not None:
            self.faces[place] = box
            self.frames[place] = frames[0]

    def in_source(self) -> Iterator[Box]:
        """Yield the faces in displayed source pixels."""
        crop = self._picture.crop
        left, top = (crop.x0, crop.y0) if crop is not None else (0, 0)
        for _, box in sorted(self.faces.items()):
            yield Box(box.x0 + left, box.y0 + top, box.x1 + left, box.y1 + top)

    def bgr(self, place: int) -> NDArray[np.uint8]:
        """Return a frame with a face, (H, W, 3) uint8 BGR."""
        return BgrFrames([self.frames[place]], self._picture)[0]


def _warn_of_others(samples: _SampledFrames, counter: FaceCounter, reached: int) -> str | None:
    """Return a sentence if a frame shows several faces; None if none does."""
    for place in evenly_spaced(reached, COUNTED_SAMPLES):
        samples.take(place)
    crowded = []
    for place in sorted(samples.faces)[:COUNTED_SAMPLES]:
        speaker = samples.faces[place]
        rivals = [
            box
            for box in counter.faces(samples.bgr(place))
            if not box.is_around_middle_of(speaker) and box.area >= MIN_RIVAL_SHARE * speaker.area
        ]
        if rivals:
            crowded.append((len(rivals) + 1, _which(speaker, rivals)))
    if not crowded:
        return None
    count, which = max(crowded)
    faces = f"{_NUMBERS[count] if count < len(_NUMBERS) else count} faces were seen"
    if len({which for _, which in crowded}) > 1:
        return f"{faces}; in each frame the most prominent one speaks, which may change. {REMEDY}"
    return f"{faces}; the {which}, speaks. {REMEDY}"


def _which(speaker: Box, rivals: Sequence[Box]) -> str:
    """Return words that distinguish one face from the others by its size and place."""
    largest = max(box.area for box in rivals)
    size = "one"
    if largest < ALIKE_SHARE * speaker.area:
        size = "larger one" if len(rivals) == 1 else "largest one"
    elif speaker.area < ALIKE_SHARE * largest:
        size = "smaller one"
    return f"{size}, {_where(speaker, rivals)}"


def _where(speaker: Box, rivals: Sequence[Box]) -> str:
    offsets = [
        (box.middle[0] - speaker.middle[0], box.middle[1] - speaker.middle[1]) for box in rivals
    ]
    across, down = (max(map(abs, axis)) for axis in zip(*offsets, strict=True))
    if across >= down:
        axis, first, last = 0, "on the left", "on the right"
    else:
        axis, first, last = 1, "at the top", "at the bottom"
    before = sum(offset[axis] < 0 for offset in offsets)
    return {0: first, len(rivals): last}.get(before, "in the middle")
