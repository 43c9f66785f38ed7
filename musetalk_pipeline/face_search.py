"""The search for a job's faces before its first block: among known surveys, then in the video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from musetalk_pipeline.artifacts import Picture, SourceVideo
from musetalk_pipeline.face_choice import FacePlace
from musetalk_pipeline.faces.detector import LandmarkDetector
from musetalk_pipeline.media.reader import ReadFrames
from musetalk_pipeline.media.shared_readers import ReaderOf, SharedReaders
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.pixels.picture import fit_picture, whole_picture
from musetalk_pipeline.survey import (
    KnownSurveys,
    Survey,
    face_counter,
    frames_to_read,
    survey,
    survey_of,
    survey_person,
)
from musetalk_pipeline.watch import Check


@dataclass(frozen=True, slots=True)
class FaceSearch:
    """What the faces of a job are searched with.

    `shown`: the source frames that are shown and drawn, in order. `known`: the surveys of earlier
    jobs, if there are any. `read_for`: returns what reads the frames that are searched; None starts
    decoders that end with the search.
    """

    source: SourceVideo
    options: JobOptions
    shown: Sequence[int]
    known: KnownSurveys | None
    read_for: ReaderOf | None

    def known_survey(self, fps: Fraction) -> Survey | None:
        """Return a known survey of the frames that are shown; None if there is none. No frame is
        read.
        """
        shown = self.shown
        if isinstance(self.options.face.face, str):
            if (known := self._known_of_beginning) is None:
                return None
            return known.find(len(shown), fps, is_exact=self._is_cropped)
        longer = self.known.find_longer(shown[-1] + 1, fps) if self.known else None
        if longer is None or longer.track is None:
            return None
        return survey_of(longer.track, self.source, self._spanned)

    def followed(self) -> int:
        """Return how many frames `for_person` reads."""
        choice = self.options.face.face
        return 0 if isinstance(choice, str) else len(frames_to_read(choice, self._spanned))

    def for_faces(self, detector: LandmarkDetector, fps: Fraction) -> Survey:
        """Search the frames that are shown."""
        shown, known = self.shown, self._known_of_beginning
        with self._reading() as read:
            found = survey(
                lambda start, end: read(shown[start], shown[end - 1] + 1),
                self._searched,
                detector,
                reached=len(shown),
                fps=fps,
                counter=face_counter() if self.options.face.face == "largest" else None,
                is_cropped=self._is_cropped,
            )
        if known:
            known.keep(len(shown), fps, found)
        return found

    def for_person(self, choice: FacePlace, fps: Fraction, check: Check) -> Survey:
        """Follow a person through the frames that are shown, and those between them."""
        shown = self._spanned
        with self._reading() as read:
            found = survey_person(read, self.source, self._searched, choice, shown, check)
        if self.known and not shown.start:
            self.known.keep(shown.stop, fps, found)
        return found

    def of_one_frame(self, choice: FacePlace) -> Survey:
        """Return where a person is in the frame of the choice alone."""
        shown = range(choice.frame, choice.frame + 1)
        with self._reading() as read:
            return survey_person(read, self.source, self._searched, choice, shown)

    @property
    def _spanned(self) -> range:
        """The frames that are shown, and those between them."""
        return range(self.shown[0], self.shown[-1] + 1)

    @property
    def _is_cropped(self) -> bool:
        return self.options.frame.fit == "crop"

    @property
    def _searched(self) -> Picture:
        """The frames as the run decodes them, or whole ones if the crop depends on the face."""
        if self._is_cropped:
            return whole_picture(self.source)
        return fit_picture(self.source, self.options.frame, ())

    @property
    def _known_of_beginning(self) -> KnownSurveys | None:
        """The known surveys, which are of the beginning of the video, if that is what is shown."""
        return self.known if self.shown[-1] == len(self.shown) - 1 else None

    @contextmanager
    def _reading(self) -> Iterator[ReadFrames]:
        with closing(SharedReaders(1)) as own:
            yield (self.read_for or partial(own.of, "survey"))(self.source, self._searched)
