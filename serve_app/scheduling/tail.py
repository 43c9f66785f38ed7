"""How the end of a job is cut, so that all replicas that draw it end together, and soon."""

import math

# A shorter part costs more in calls and key frames than it saves (guess; a call costs 20 ms).
SHORTEST_S = 0.25
SHORTEST_FRAMES = 4
# One replica, too, draws the end in shorter and shorter parts: each is encoded while the next one
# is drawn, and only the last, short one is encoded afterwards. It saves 5 % of a job of 10 s.
LEAST_PARTS = 2


def part_frames(
    segment_frames: int, frames_left: int, replicas: int, frames_per_s: float = 0.0
) -> int:
    """Return how many frames of the next segment to hand out as one call.

    That is the whole segment as long as every replica can have another one. After that each part
    is an equal share of what is left, so the parts get smaller towards the end, and all replicas
    are done within about one shortest part of each other (guided self-scheduling). One replica
    counts as `LEAST_PARTS`.

    `frames_left`: of the job, those of this segment included. `replicas`: that may draw it now.
    `frames_per_s`: of one of them.
    """
    shortest = max(SHORTEST_FRAMES, math.ceil(SHORTEST_S * frames_per_s))
    share = max(shortest, math.ceil(frames_left / max(LEAST_PARTS, replicas)))
    # A remainder that is shorter than the shortest part stays with its segment.
    return share if share + shortest <= segment_frames else segment_frames
