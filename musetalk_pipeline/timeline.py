"""How a job's video and sound are laid over each other: trims, and what becomes of lengths that
differ.

Pure arithmetic; imports neither torch nor av.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from musetalk_pipeline.artifacts import SoundPart, SourceVideo, SpeechAudio
from musetalk_pipeline.errors import AudioTooShort, InputName, InvalidOptions
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import (
    MIN_SAMPLES,
    SAMPLE_RATE,
    FrameOrder,
    count_output_frames,
    playing_fps,
    speech_fps,
)
from musetalk_pipeline.time_options import SyncMode, TimeOptions

# A time that is this much after the end is taken for the end: programs round lengths, and count
# them by the sound of a video.
TOLERANCE_S = Fraction(1, 10)
# Each frame that is left out has been decoded, and its face has been searched.
FASTEST = 4


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a job shows and what is heard. `sound`: what to join; empty if the sound is taken as it
    is.
    """

    order: FrameOrder
    sound: tuple[SoundPart, ...] = ()


def lay_out(source: SourceVideo, audio: SpeechAudio, options: JobOptions) -> Timeline:
    """Decide which frames are shown in which order, and what is heard.

    Raises:
        InvalidOptions: the file is not long enough for a time, or would have to play too fast.
        AudioTooShort: what is used of the sound is shorter than a frame.
    """
    time = options.time
    time.check()
    first, end = used_frames(source, time)
    sound = used_samples(audio, time)
    fps = playing_fps(source.fps, options.frame.fps)
    rate = speech_fps(fps, options.speech.frame_rate)
    spoken = count_output_frames(len(sound), rate)
    length_s = len(sound) / SAMPLE_RATE
    if spoken < 1:
        raise AudioTooShort(
            f"The audio is {length_s * 1000:.0f} ms long, less than one frame of a video "
            f"with {float(fps):.3g} frames a second. Send longer audio.",
            duration_s=length_s,
        )
    if len(sound) < MIN_SAMPLES:
        raise AudioTooShort(
            f"Only {length_s * 1000:.0f} ms of the audio are used; at least 80 ms are needed.",
            hint="Choose `audio_start_s` and `audio_end_s` further apart.",
            duration_s=length_s,
        )
    order = _order(time.sync_mode, first, end, spoken)
    return Timeline(order, _sound(audio, sound, order.n_output, spoken, rate))


def used_frames(source: SourceVideo, time: TimeOptions) -> tuple[int, int]:
    """Return the source frames `[first, end)` that are used."""
    start_s = _time("video", "video_start_s", time.video_start_s, source.n_frames / source.fps)
    first, end = _nearest(start_s * source.fps), source.n_frames
    if time.video_end_s is not None:
        end_s = _time("video", "video_end_s", time.video_end_s, source.n_frames / source.fps)
        end = min(end, _nearest(end_s * source.fps))
    if first >= end:
        raise _empty("video", "frame")
    return first, end


def used_samples(audio: SpeechAudio, time: TimeOptions) -> range:
    """Return the samples at 16 kHz that are used."""
    length_s = Fraction(audio.n_samples, SAMPLE_RATE)
    first, end = 0, audio.n_samples
    if time.audio_start_s:
        start_s = _time("audio", "audio_start_s", time.audio_start_s, length_s)
        first = _nearest(start_s * SAMPLE_RATE)
    if time.audio_end_s is not None:
        end_s = _time("audio", "audio_end_s", time.audio_end_s, length_s)
        end = min(end, _nearest(end_s * SAMPLE_RATE))
    if first >= end:
        raise _empty("audio", "sample")
    return range(first, end)


def _order(mode: SyncMode, first: int, end: int, spoken: int) -> FrameOrder:
    """Return the order of the source frames `[first, end)` with sound for `spoken` frames."""
    shown = end - first
    if mode == "loop":
        return FrameOrder("loop", first, end, spoken)
    if mode == "cut_off":
        return FrameOrder("bounce", first, end, min(shown, spoken))
    if mode == "silence":
        return FrameOrder("bounce", first, end, max(shown, spoken))
    if mode == "remap":
        if shown > FASTEST * spoken:
            raise InvalidOptions(
                f"With `sync_mode: remap` the video would play {shown / spoken:.3g} times as fast; "
                f"at most {FASTEST} times is accepted. Send longer audio, or use less of the video "
                "(`video_start_s`, `video_end_s`).",
                speed=round(shown / spoken, 3),
            )
        return FrameOrder("stretch", first, end, spoken)
    return FrameOrder("bounce", first, end, spoken)


def _sound(
    audio: SpeechAudio, used: range, n_output: int, spoken: int, rate: Fraction
) -> tuple[SoundPart, ...]:
    """Return what the sound is joined from; nothing if all of it is used as it is."""
    part = SoundPart(audio, used.start, len(used))
    if n_output > spoken:
        # Up to the first sample after the last frame.
        missing = math.ceil(n_output * SAMPLE_RATE / rate) - len(used)
        return (part, SoundPart(None, 0, missing)) if missing > 0 else (part,)
    return () if len(used) == audio.n_samples else (part,)


def _time(name: InputName, option: str, given_s: float, length_s: Fraction) -> Fraction:
    """Return a time of an option, exactly, at most the length of the file."""
    exact = Fraction(given_s).limit_denominator(1_000_000)
    if exact > length_s + TOLERANCE_S:
        raise InvalidOptions(
            f"`{option}` is {given_s:g}, but the {name} lasts {float(length_s):.2f} s. Choose a "
            "time before its end.",
            input=name,
            duration_s=round(float(length_s), 3),
        )
    return min(exact, length_s)


def _empty(name: InputName, unit: str) -> InvalidOptions:
    return InvalidOptions(
        f"There is not a single {unit} between `{name}_start_s` and `{name}_end_s`. Choose times "
        "that are further apart, and a start before the end of the file.",
        input=name,
    )


def _nearest(number: Fraction) -> int:
    return math.floor(number + Fraction(1, 2))
