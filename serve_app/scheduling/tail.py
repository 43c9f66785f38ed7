"""How the end of a job is cut, so that all replicas that draw it end together."""

import math

SHORTEST_PART = 8  # frames; a shorter part costs more in calls and key frames than it saves (guess)


def part_frames(segment_frames: int, frames_left: int, replicas: int) -> int:
    """Return how many frames of the next segment to hand out as one call.

    That is the whole segment as long as every replica can have another one. After that each part
    is an equal share of what is left, so the parts get smaller towards the end, and all replicas
    are done within about one shortest part of each other (guided self-scheduling).

    `frames_left`: of the job, those of this segment included. `replicas`: that may draw it now.
    """
    share = max(SHORTEST_PART, math.ceil(frames_left / max(1, replicas)))
    # A remainder that is shorter than the shortest part stays with its segment.
    return share if share + SHORTEST_PART <= segment_frames else segment_frames
