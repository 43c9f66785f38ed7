"""Which part of the video and of the sound a job uses, and what becomes of lengths that differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from musetalk_pipeline.errors import InputName, InvalidOptions
from musetalk_pipeline.option_spec import Spec
from musetalk_pipeline.video_spans import LONGEST_S, VideoSpan, check_spans, read_spans

SyncMode = Literal["bounce", "loop", "cut_off", "silence", "remap"]


@dataclass(frozen=True, slots=True)
class TimeOptions:
    """Times are seconds from the beginning of the file that was sent, whatever rate its frames are
    played at. None: to its end. Frames and samples begin and end at the nearest to each time.

    `sync_mode`: `bounce` is the reference. Words and meanings are those of sync.so's API.
    """

    sync_mode: Annotated[
        SyncMode,
        Spec(
            "If the sound is longer, the video goes back and forth (`bounce`) or begins again "
            "(`loop`); if it is shorter, both end the video with the sound. `cut_off` ends with "
            "the shorter of the two, `silence` with the longer, and `remap` plays the video faster "
            "or slower, so that it lasts as long as the sound."
        ),
    ] = "bounce"
    video_start_s: Annotated[
        float,
        Spec(
            "The video is used from this time on, in seconds.",
            least=0,
            most=LONGEST_S,
            metavar="S",
        ),
    ] = 0.0
    video_end_s: Annotated[
        float | None,
        Spec(
            "The video is used up to this time.",
            least=0,
            most=LONGEST_S,
            metavar="S",
            default_text="its end",
        ),
    ] = None
    audio_start_s: Annotated[
        float,
        Spec(
            "The sound is used from this time on, in seconds.",
            least=0,
            most=LONGEST_S,
            metavar="S",
        ),
    ] = 0.0
    audio_end_s: Annotated[
        float | None,
        Spec(
            "The sound is used up to this time.",
            least=0,
            most=LONGEST_S,
            metavar="S",
            default_text="its end",
        ),
    ] = None

    segments: Annotated[
        tuple[VideoSpan, ...],
        Spec(
            "Only these spans of the video speak, each with an audio of its own, and everything "
            "else stays as it is, its sound included (docs/options.md).",
            metavar="JSON",
            default_text="none, so that all of it speaks",
            read=read_spans,
        ),
    ] = ()

    @property
    def may_cut_sound(self) -> bool:
        """Whether the sound may differ from the whole of its file."""
        return (
            bool(self.audio_start_s)
            or self.audio_end_s is not None
            or self.sync_mode == "silence"
            or bool(self.segments)
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of the sounds of segments, each once, in order."""
        found = [span.audio.url for span in self.segments if span.audio and span.audio.url]
        return tuple(dict.fromkeys(found))

    def of_video(self) -> TimeOptions:
        """Return what concerns the video alone: all that there is for an avatar."""
        return TimeOptions(video_start_s=self.video_start_s, video_end_s=self.video_end_s)

    def check(self) -> None:
        """Refuse what cannot be right for any file.

        Raises:
            InvalidOptions: an end is not after its start, or the segments cannot be right.
        """
        check_spans(self.segments)
        _check_order("video", self.video_start_s, self.video_end_s)
        _check_order("audio", self.audio_start_s, self.audio_end_s)


def _check_order(name: InputName, start_s: float, end_s: float | None) -> None:
    if end_s is not None and end_s <= start_s:
        raise InvalidOptions(
            f"`{name}_end_s` is {end_s:g} and `{name}_start_s` is {start_s:g}; the end has to be "
            "after the start.",
            input=name,
        )
