"""How a job's video and sounds are laid over each other: trims, lengths that differ, and spans that
speak.

Pure arithmetic; imports neither torch nor av.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from musetalk_pipeline.video_spans import SpanAudio, VideoSpan

# A time that is this much after the end is taken for the end: programs round lengths, and count
# them by the sound of a video.
TOLERANCE_S = Fraction(1, 10)
# Each frame that is left out has been decoded, and its face has been searched.
FASTEST = 4


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a job shows and what is heard.

    `sound`: what to join; empty if the sound is taken as it is. `drawn`: the output frames that
    speak, in order; None if all do. `warnings`: sentences about options without an effect.
    """

    order: FrameOrder
    sound: tuple[SoundPart, ...] = ()
    drawn: tuple[range, ...] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def searched(self) -> Sequence[int]:
        """The source frames whose faces are searched, in order."""
        if self.drawn is None:
            return self.order.reached()
        return [self.order.first + frame for span in self.drawn for frame in span]


@dataclass(frozen=True, slots=True)
class Sounds:
    """The sounds of a job. `job`: of its audio. `others`: by the addresses of segments.

    `video`: the video's own, None if it has none or is not needed. `video_begins_s`: how much later
    than the picture it begins.
    """

    job: SpeechAudio
    others: Mapping[str, SpeechAudio] = field(default_factory=dict)
    video: SpeechAudio | None = None
    video_begins_s: Fraction = Fraction(0)


def lay_out(source: SourceVideo, sounds: Sounds, options: JobOptions) -> Timeline:
    """Decide which frames are shown in which order, and what is heard.

    Raises:
        InvalidOptions: the file is not long enough for a time, or would have to play too fast.
        AudioTooShort: what is used of the sound is shorter than a frame.
    """
    time, audio = options.time, sounds.job
    time.check()
    first, end = used_frames(source, time)
    fps = playing_fps(source.fps, options.frame.fps)
    if time.segments:
        _check_rates(source, fps, options)
        return _lay_out_spans(source, sounds, time, first, end)
    sound = used_samples(audio, time.audio_start_s, time.audio_end_s)
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


def used_samples(audio: SpeechAudio, start_s: float, end_s: float | None) -> range:
    """Return the samples at 16 kHz that are used."""
    length_s = Fraction(audio.n_samples, SAMPLE_RATE)
    first = _nearest(_time("audio", "audio_start_s", start_s, length_s) * SAMPLE_RATE)
    end = audio.n_samples
    if end_s is not None:
        end = min(end, _nearest(_time("audio", "audio_end_s", end_s, length_s) * SAMPLE_RATE))
    if first >= end:
        raise _empty("audio", "sample")
    return range(first, end)


def _check_rates(source: SourceVideo, fps: Fraction, options: JobOptions) -> None:
    """Refuse rates at which the video's own sound would not fit its picture."""
    for is_wrong, option in (
        (fps != source.fps, "fps"),
        (options.speech.frame_rate != "exact", "frame_rate"),
    ):
        if is_wrong:
            raise InvalidOptions(
                f"`segments` cannot be combined with `{option}`, because the sound between them "
                f"would not fit the picture. Leave one of the two out.",
                hint=f"Leave `{option}` out, or `segments`.",
            )


def _lay_out_spans(
    source: SourceVideo, sounds: Sounds, time: TimeOptions, first: int, end: int
) -> Timeline:
    """Let spans of the video speak, and leave everything else as it is."""
    parts: list[SoundPart] = []
    drawn: list[range] = []
    at = first
    for span in sorted(time.segments, key=lambda span: span.start_s):
        frames = _frames_of(span, source, first, end)
        if span.audio is None:
            continue
        parts += _own_sound(sounds, source.fps, range(at, frames.start))
        parts += _span_sound(span.audio, sounds, time, source.fps, frames)
        drawn.append(range(frames.start - first, frames.stop - first))
        at = frames.stop
    parts += _own_sound(sounds, source.fps, range(at, end))
    order = FrameOrder("bounce", first, end, end - first)
    warnings: tuple[str, ...] = ()
    if time.sync_mode != "bounce":
        warnings = (
            "sync_mode has no effect together with segments: the result is as long as the video.",
        )
    return Timeline(order, tuple(parts), tuple(drawn), warnings)


def _frames_of(span: VideoSpan, source: SourceVideo, first: int, end: int) -> range:
    """Return the source frames of a span."""
    length_s = source.n_frames / source.fps
    edges = [
        _nearest(_time("video", f"segments: {name}", given, length_s) * source.fps)
        for name, given in (("start_s", span.start_s), ("end_s", span.end_s))
    ]
    name = f"The segment {span.start_s:g} to {span.end_s:g} s"
    if edges[0] >= edges[1]:
        raise InvalidOptions(
            f"{name} holds no frame of the video. Choose times that are further apart.",
            input="video",
        )
    if edges[0] < first or edges[1] > end:
        used = f"{float(first / source.fps):g} to {float(end / source.fps):g} s"
        raise InvalidOptions(
            f"{name} is not within the part of the video that is used, {used}. Change the segment, "
            "`video_start_s` or `video_end_s`.",
            input="video",
        )
    return range(*edges)


def _own_sound(sounds: Sounds, fps: Fraction, frames: range) -> list[SoundPart]:
    """Return the video's own sound during some of its frames."""
    place, count = _samples_of(frames, fps)
    if sounds.video is None:
        return _parts(None, 0, 0, count)
    late = _nearest(sounds.video_begins_s * SAMPLE_RATE)
    before = min(max(0, late - place), count)
    start = max(0, place - late)
    left = max(0, sounds.video.n_samples - start)
    parts = [*_parts(None, 0, 0, before), *_parts(sounds.video, start, left, count - before)]
    return [replace(part, is_spoken=False) for part in parts]


def _span_sound(
    audio: SpanAudio, sounds: Sounds, time: TimeOptions, fps: Fraction, frames: range
) -> list[SoundPart]:
    """Return what is spoken during some frames: no longer than they last, then silence."""
    start_s, end_s = audio.start_s, audio.end_s
    if audio.url is None:
        sound = sounds.job
        start_s = time.audio_start_s if start_s is None else start_s
        end_s = time.audio_end_s if end_s is None else end_s
    else:
        sound = sounds.others[audio.url]
    used = used_samples(sound, start_s or 0.0, end_s)
    _, count = _samples_of(frames, fps)
    return _parts(sound, used.start, len(used), count)


def _samples_of(frames: range, fps: Fraction) -> tuple[int, int]:
    """Return the first sample at 16 kHz of some source frames, and how many there are."""
    first, end = (_nearest(frame * SAMPLE_RATE / fps) for frame in (frames.start, frames.stop))
    return first, end - first


def _parts(sound: SpeechAudio | None, start: int, length: int, count: int) -> list[SoundPart]:
    """Return `count` samples: the first of the `length` from `start` on, then silence."""
    heard = 0 if sound is None else min(length, count)
    parts = [SoundPart(sound, start, heard), SoundPart(None, 0, count - heard)]
    return [part for part in parts if part.n_samples]


def _order(mode: SyncMode, first: int, end: int, spoken: int) -> FrameOrder:
    """Return the order of the source frames `[first, end)` with sound for `spoken` frames."""
    shown = end - first
    if shown == 1:  # a picture lasts as long as the sound
        return FrameOrder("bounce", first, end, spoken)
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
    if n_output > spoken:
        # Up to the first sample after the last frame.
        count = max(len(used), math.ceil(n_output * SAMPLE_RATE / rate))
        return tuple(_parts(audio, used.start, len(used), count))
    if len(used) == audio.n_samples:
        return ()
    return (SoundPart(audio, used.start, len(used)),)


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
