"""The search for a job's faces before its first block: among known surveys, then in the video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

    `shown`: the source frames that are shown and drawn, in order. `known`: the surveys of earlier
    jobs, if there are any. `read_for`: returns what reads the frames that are searched; None starts
    decoders that end with the search.
    """

    source: SourceVideo
    options: JobOptions
    shown: Sequence[int]
    known: KnownSurveys | None
    read_for: ReaderOf | None

    def for_faces(self, detector: LandmarkDetector, fps: Fraction) -> Survey:
        """Return a known survey of the frames that are shown, or make one."""
        shown = self.shown
        return self._known_or(
            lambda read: survey(
                lambda start, end: read(shown[start], shown[end - 1] + 1),
                self._searched,
                detector,
                reached=len(shown),
                fps=fps,
                counter=face_counter() if self.options.face.face == "largest" else None,
                is_cropped=self._is_cropped,
            ),
            *(fps, self._is_cropped),
        )

    def for_person(self, choice: FacePlace, fps: Fraction, check: Check) -> Survey:
        """Return where a known survey has found a person in the frames that are shown, and those
        between them, or look.
        """
        shown = range(self.shown[0], self.shown[-1] + 1)
        return self._known_or(
            lambda read: survey_person(read, self.source, self._searched, choice, shown, check),
            *(fps, True),
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
        self, make: Callable[[ReadFrames], Survey], fps: Fraction, is_exact: bool
    ) -> Survey:
        # Known surveys are of the beginning of a video.
        reached = len(self.shown)
        known = self.known if self.shown[-1] == reached - 1 else None
        found = known and known.find(reached, fps, is_exact=is_exact)
        if not found:
            with self._reading() as read:
                found = make(read)
            if known:
                known.keep(reached, fps, found)
        return found

    @contextmanager
    def _reading(self) -> Iterator[ReadFrames]:
        with closing(SharedReaders(1)) as own:
            yield (self.read_for or partial(own.of, "survey"))(self.source, self._searched)
