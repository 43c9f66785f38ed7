"""One person through a whole video: which tracklets are theirs.

1. The tracklet that holds the chosen face is theirs. Faces that are visible at the same time are
   other people's.
2. Tracklets that look like it, and clearly more like it than like the other people, are theirs too;
   of those at the same time, the most alike.
3. Step 2 is done once more with all that was found, which shows the person in more poses.

A tracklet that does not look like the person is left out, so its frames are shown as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.faces.likeness import ALIKE, CLEARLY
from musetalk_pipeline.faces.tracklets import Tracklet
from musetalk_pipeline.track import Span, Track, straightened

ROUNDS = 2
MOST_KNOWN = 64  # descriptors that a person, and all others, are compared by


def follow(tracklets: Sequence[Tracklet], chosen: Tracklet) -> list[Tracklet]:
    """Return the tracklets of the person whose face `chosen` is, in order of time."""
    mine = [chosen]
    taken = np.zeros(max(one.last_frame for one in tracklets) + 1, np.bool_)
    taken[_sure(chosen)] = True
    for _ in range(ROUNDS):
        rest = [one for one in tracklets if one not in mine]
        known = _looks(mine)
        others = _looks([one for one in rest if taken[_sure(one)].any()])
        alike = {one: _likeness(one, known) for one in rest}
        for one in sorted(rest, key=lambda each: (-alike[each], each.start)):
            least = max(ALIKE, _likeness(one, others) + CLEARLY)
            if alike[one] >= least and not taken[_sure(one)].any():
                mine.append(one)
                taken[_sure(one)] = True
    return sorted(mine, key=lambda one: one.first_frame)


def track_of(mine: Sequence[Tracklet], to_source: Callable[[Box], Box]) -> Track:
    """Return the track that one person's tracklets make. `to_source`: maps a box from the picture
    that was searched to the displayed source.
    """
    runs: list[list[Tracklet]] = []
    for one in mine:
        # A face that moves too fast to overlap itself: between the two samples it is on its way.
        if runs and runs[-1][-1].end > one.start:
            runs[-1].append(one)
        else:
            runs.append([one])
    return Track(tuple(_span(run, to_source) for run in runs))


def _span(run: Sequence[Tracklet], to_source: Callable[[Box], Box]) -> Span:
    keys = straightened([(frame, to_source(box)) for one in run for frame, box in one.keys])
    frames, boxes = zip(*keys, strict=True)
    return Span(run[0].start, run[-1].end, frames, boxes)


def _sure(one: Tracklet) -> slice:
    """Return the frames in which a face certainly is."""
    return slice(one.first_frame, one.last_frame + 1)


def _looks(tracklets: Sequence[Tracklet]) -> NDArray[np.float32]:
    """Return descriptors of all of them, evenly chosen: (n, length) float32."""
    looks = [look for one in tracklets for look in one.looks]
    step = max(1, -(-len(looks) // MOST_KNOWN))
    return np.array(looks[::step], np.float32)


def _likeness(one: Tracklet, known: NDArray[np.float32]) -> float:
    if not len(known):
        return 0.0
    return float((np.array(one.looks, np.float32) @ known.T).max())
