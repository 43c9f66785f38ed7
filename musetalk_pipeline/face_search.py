"""The search for a job's faces before its first block: among known surveys, then in the video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from musetalk_pipeline.survey import KnownSurveys, Survey, face_counter, survey, survey_person
from musetalk_pipeline.watch import Check


@dataclass(frozen=True, slots=True)
class FaceSearch:
    """What the faces of a job are searched with.

    `known`: the surveys of earlier jobs, if there are any. `read_for`: returns what reads the
    frames that are searched; None starts decoders that end with the search.
    """

    source: SourceVideo
    options: JobOptions
    known: KnownSurveys | None
    read_for: ReaderOf | None

    def for_faces(self, detector: LandmarkDetector, reached: int, fps: Fraction) -> Survey:
        """Return a known survey of the frames that the sound reaches, or make one."""
        return self._known_or(
            lambda read: survey(
                read,
                self._searched,
                detector,
                reached=reached,
                fps=fps,
                counter=face_counter() if self.options.face.face == "largest" else None,
                is_cropped=self._is_cropped,
            ),
            *(reached, fps, self._is_cropped),
        )

    def for_person(self, choice: FacePlace, shown: range, fps: Fraction, check: Check) -> Survey:
        """Return where a known survey has found a person in the frames that are shown, or look."""
        return self._known_or(
            lambda read: survey_person(read, self.source, self._searched, choice, shown, check),
            *(len(shown), fps, True),
        )

    def of_one_frame(self, choice: FacePlace) -> Survey:
        """Return where a person is in the frame of the choice alone."""
        shown = range(choice.frame, choice.frame + 1)
        with self._reading() as read:
            return survey_person(read, self.source, self._searched, choice, shown)

    @property
    def _is_cropped(self) -> bool:
        return self.options.frame.fit == "crop"

    @property
    def _searched(self) -> Picture:
        """The frames as the run decodes them, or whole ones if the crop depends on the face."""
        if self._is_cropped:
            return whole_picture(self.source)
        return fit_picture(self.source, self.options.frame, ())

    def _known_or(
        self, make: Callable[[ReadFrames], Survey], reached: int, fps: Fraction, is_exact: bool
    ) -> Survey:
        found = self.known and self.known.find(reached, fps, is_exact=is_exact)
        if not found:
            with self._reading() as read:
                found = make(read)
            if self.known:
                self.known.keep(reached, fps, found)
        return found

    @contextmanager
    def _reading(self) -> Iterator[ReadFrames]:
        with closing(SharedReaders(1)) as own:
            yield (self.read_for or partial(own.of, "survey"))(self.source, self._searched)
