"""Every face of a video, followed for as long as it stays in sight.

    frames ─► samples: all faces of every few frames, and of both frames at a possible cut
    samples ─► tracklets: faces that overlap from one sample to the next, and look alike

A tracklet never goes on across a cut unless the face stays at its place and looks as before. Whose
tracklets belong together is decided in `following`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture
from musetalk_pipeline.boxes import Box, face_box
from musetalk_pipeline.face_choice import MOST_FACES
from musetalk_pipeline.faces.face_boxes import overlap
from musetalk_pipeline.faces.likeness import ALIKE, STILL_ALIKE, describe, likeness
from musetalk_pipeline.faces.mesh import MeshDetector
from musetalk_pipeline.faces.shots import CutFinder
from musetalk_pipeline.pixels.colour import BgrFrames
from musetalk_pipeline.pixels.picture import is_shown
from musetalk_pipeline.watch import Check, go_on

Frame = NDArray[np.uint8]
Float = NDArray[np.float32]

OVERLAP = 0.25  # guess: intersection over union of one face in two samples, at least
MOST_LOOKS = 4  # descriptors of a tracklet
# At 5 kB each. An hour of shots of two seconds with two people has 3600; a video with more of them
# than this flickers, and the shortest ones are forgotten.
MOST_TRACKLETS = 8192
NEW_LOOK = 0.93  # guess: a view that is less like the others is kept too
AROUND_FACE = 0.25  # guess: of a face's size, how far beside its box a point may be


@dataclass(frozen=True, slots=True)
class Pace:
    """How a video is sampled, in frames. `step`: from one sample to the next. `gap`: a face that
    was missed for so long at its place is still the same one.
    """

    step: int
    gap: int

    @classmethod
    def at(cls, fps: float) -> Pace:
        """Return the pace for a frame rate. The times are guesses: within 0.16 s a face hardly
        leaves its own box.
        """
        return cls(max(1, round(0.16 * fps)), max(1, round(fps)))


@dataclass(frozen=True, slots=True)
class Seen:
    """One face of a sample. `box`: in pixels of the picture. `look`: its descriptor."""

    box: Box
    look: Float


@dataclass(slots=True, eq=False)
class Tracklet:
    """One face in the source frames `[start, end)`. `keys`: where it was found. `looks`: its
    descriptors, float16. `missed_at`: the first sample without it since it was found last.
    """

    start: int
    end: int
    keys: list[tuple[int, Box]]
    looks: list[NDArray[np.float16]] = field(default_factory=list)
    missed_at: int | None = None

    @property
    def first_frame(self) -> int:
        """The first frame in which it was found."""
        return self.keys[0][0]

    @property
    def last_frame(self) -> int:
        """The last frame in which it was found."""
        return self.keys[-1][0]

    @property
    def place(self) -> Box:
        """Where it was found last."""
        return self.keys[-1][1]

    def likeness(self, look: Float) -> float:
        """Return how alike a face is to this one."""
        return max((likeness(known.astype(np.float32), look) for known in self.looks), default=0.0)

    def add(self, frame: int, seen: Seen) -> None:
        """Go on with a face of a later sample."""
        self.keys.append((frame, seen.box))
        self.end, self.missed_at = frame + 1, None
        if len(self.looks) < MOST_LOOKS and self.likeness(seen.look) < NEW_LOOK:
            self.looks.append(seen.look.astype(np.float16))


class TrackletFinder:
    """Finds the tracklets of a video whose frames it is given in order.

    `wanted`, `place`: the frame and the place in it, in pixels of the picture, at which a face is
    expected; that frame is searched for small faces too if there is none. `most`: tracklets that
    are remembered.
    """

    def __init__(
        self,
        mesh: MeshDetector,
        picture: Picture,
        pace: Pace,
        wanted: int,
        place: Box,
        *,
        most: int = MOST_TRACKLETS,
    ) -> None:
        self._mesh, self._picture, self._pace = mesh, picture, pace
        self._wanted, self._place, self._most = wanted, place, most
        self._open: list[Tracklet] = []
        self._closed: list[Tracklet] = []
        self._last: list[Seen] = []  # the faces of the last sample
        self._sampled = -1
        self.at_wanted: list[tuple[Box, Tracklet]] = []

    def run(self, frames: Iterable[Frame], first: int = 0, check: Check = go_on) -> list[Tracklet]:
        """Return the tracklets of all frames, (H * 3 / 2, W) uint8 I420 of the picture each.

        `first`: the number of the first one. Two frames at most are held at a time. `check` is
        called before each.
        """
        self._sampled = first - 1
        cuts = CutFinder()
        before: Frame | None = None
        number = first - 1
        for number, frame in enumerate(frames, first):
            check()
            is_cut = cuts.is_cut(frame)
            if is_cut and before is not None and self._sampled < number - 1:
                self._sample(number - 1, before)
            if is_cut or self._is_due(number, first):
                self._sample(number, frame, is_cut=is_cut)
            before = frame
        if before is not None and self._sampled < number:
            self._sample(number, before)
        for tracklet in list(self._open):
            self._close(tracklet)
        return self._closed

    def _is_due(self, number: int, first: int) -> bool:
        return (number - first) % self._pace.step == 0 or number == self._wanted

    def _sample(self, number: int, frame: Frame, *, is_cut: bool = False) -> None:
        seen = self._search(number, BgrFrames([frame], self._picture)[0], is_cut=is_cut)
        owners = self._links(seen, is_cut=is_cut)
        for place, face in enumerate(seen):
            owner = owners.get(place)
            if owner is None:
                owners[place] = self._begin(number, face, is_cut=is_cut)
            else:
                owner.add(number, face)
        self._let_go(number, seen, is_cut=is_cut)
        if number == self._wanted:
            self.at_wanted = [(face.box, owners[at]) for at, face in enumerate(seen)]
        self._last, self._sampled = seen, number

    def _search(self, number: int, bgr: Frame, *, is_cut: bool) -> list[Seen]:
        """Return the faces of a frame, those that are only found near their last place included."""
        found = self._mesh.all_faces(bgr, most_boxes=2 * MOST_FACES)
        if number == self._wanted and hit(self._place, [box for box, _ in found]) is None:
            found = self._mesh.all_faces(bgr, most_boxes=8 * MOST_FACES, with_small=True)
        for tracklet in [] if is_cut else self._open:
            if not any(overlap(tracklet.place, box) > 0 for box, _ in found):
                again = self._mesh.face_at(bgr, tracklet.place)
                box = None if again is None else face_box(again.points)
                if again is not None and box is not None:
                    found.append((box, again))
        kept = [(box, marks) for box, marks in found if is_shown(box, self._picture)]
        return [Seen(box, describe(bgr, marks.points)) for box, marks in kept[:MOST_FACES]]

    def _links(self, seen: Sequence[Seen], *, is_cut: bool) -> dict[int, Tracklet]:
        """Return which tracklet goes on with which face."""
        pairs = []
        for tracklet in self._open:
            is_sure = not is_cut and tracklet.missed_at is None
            least = STILL_ALIKE if is_sure else ALIKE
            for place, face in enumerate(seen):
                common = overlap(tracklet.place, face.box)
                if common >= OVERLAP and tracklet.likeness(face.look) >= least:
                    pairs.append((common, place, tracklet))
        owners: dict[int, Tracklet] = {}
        for _, place, tracklet in sorted(pairs, key=lambda pair: -pair[0]):
            if place not in owners and tracklet not in owners.values():
                owners[place] = tracklet
        return owners

    def _begin(self, number: int, face: Seen, *, is_cut: bool) -> Tracklet:
        """Begin a tracklet, after the last sample unless another face was there."""
        was_taken = any(overlap(face.box, other.box) > 0 for other in self._last)
        start = number if is_cut or was_taken else self._sampled + 1
        tracklet = Tracklet(start, number + 1, [(number, face.box)])
        tracklet.looks.append(face.look.astype(np.float16))
        self._open.append(tracklet)
        return tracklet

    def _let_go(self, number: int, seen: Sequence[Seen], *, is_cut: bool) -> None:
        """Close the tracklets that do not go on, and note which are missed."""
        for tracklet in [one for one in self._open if one.last_frame != number]:
            is_taken = any(overlap(tracklet.place, face.box) > 0 for face in seen)
            if tracklet.missed_at is None and not is_taken:
                tracklet.missed_at = number
            if is_cut or is_taken or number - tracklet.last_frame > self._pace.gap:
                self._close(tracklet)

    def _close(self, tracklet: Tracklet) -> None:
        tracklet.end = tracklet.missed_at or tracklet.last_frame + 1
        self._open.remove(tracklet)
        self._closed.append(tracklet)
        if len(self._closed) > self._most:
            self._forget_the_shortest()

    def _forget_the_shortest(self) -> None:
        """Keep the longer half of the tracklets, and those that can be chosen."""
        chosen = [tracklet for _, tracklet in self.at_wanted]
        by_length = sorted(self._closed, key=lambda one: one.first_frame - one.last_frame)
        kept = by_length[: self._most // 2]
        self._closed = kept + [one for one in by_length[len(kept) :] if one in chosen]


def hit(place: Box, boxes: Sequence[Box]) -> int | None:
    """Return which of the faces is at a place, the nearest if there are several; None if none."""
    near = [
        (_distance(place, box) / max(box.width, box.height), at)
        for at, box in enumerate(boxes)
        if _widened(box).is_around_middle_of(place)
    ]
    return min(near)[1] if near else None


def _widened(box: Box) -> Box:
    room = round(AROUND_FACE * max(box.width, box.height))
    return Box(box.x0 - room, box.y0 - room, box.x1 + room, box.y1 + room)


def _distance(one: Box, other: Box) -> float:
    (x, y), (u, v) = one.middle, other.middle
    return float(np.hypot(x - u, y - v))
