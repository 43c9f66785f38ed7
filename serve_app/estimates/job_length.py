"""How much there is to do in a job, whether it is done already or not."""

from __future__ import annotations

from dataclasses import dataclass, replace

WHOLE = 0.5  # of the frames: with fewer, a job is of another kind than one with all of them


@dataclass(frozen=True, slots=True)
class JobLength:
    """What a job does, in frames.

    `frames`: of the output. `first_frames`: of the first block. `pixels`: of the picture.
    `composed`: of the output; none if only the avatar is made. `to_draw`: of the output, in
    segments that draw on a block. `drawn`: faces that are drawn. `prepared`, `kept`: of the source,
    whose faces are found, and those that are loaded instead. `followed`: of the source, which are
    read to follow a chosen person.
    """

    frames: int
    first_frames: int
    pixels: int
    composed: int
    to_draw: int
    drawn: int
    prepared: int
    kept: int = 0
    followed: int = 0

    @property
    def has_avatar(self) -> bool:
        """Whether most of the avatar has been kept by an earlier job."""
        return self.kept > self.prepared

    @property
    def in_full(self) -> JobLength:
        """The same job if nothing were kept and nobody were silent."""
        prepared = self.prepared + self.kept
        return replace(self, drawn=max(self.drawn, self.to_draw), prepared=prepared, kept=0)

    @property
    def kind(self) -> tuple[bool, bool, bool, bool]:
        """What jobs that take about as long for their lengths have in common."""
        return (
            self.has_avatar,
            self.followed > 0,
            self.drawn > WHOLE * self.frames,
            self.prepared + self.kept > WHOLE * self.frames,
        )


def whole_job(frames: int, first_frames: int, pixels: int) -> JobLength:
    """Return the length of a job that prepares and draws each of its frames once."""
    return JobLength(frames, first_frames, pixels, *[frames] * 4)
