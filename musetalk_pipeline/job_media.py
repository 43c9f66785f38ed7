"""The media of a job on this node: checked, and laid over each other as its options say.

It is the same on every node, because it follows from the files and the options alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from musetalk_pipeline.artifacts import SourceVideo, SpeechAudio
from musetalk_pipeline.errors import InvalidOptions, JobCancelled
from musetalk_pipeline.media.joined_sound import join_sound
from musetalk_pipeline.media.probe import probe_video
from musetalk_pipeline.media.speech_audio import make_track, open_audio, open_video_sound
from musetalk_pipeline.options import JobOptions, MediaLimits
from musetalk_pipeline.pixels.picture import target_size
from musetalk_pipeline.timeline import Sounds, Timeline, lay_out

MIN_FPS = 1  # of the option `fps`; a lower rate would not be a video


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256, in hex, of a job's files. `others`: of the sounds of its segments, in order."""

    video: str
    audio: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobFiles:
    """A job's files. If `digests` is None, `open_media` reads the files to compute them.
    `track_within_s`: if the sound is longer, its track has yet to be made (`make_track`).
    `others`: the sounds of segments by their addresses, in the order of `TimeOptions.urls`.
    """

    video: Path
    audio: Path
    digests: Digests | None = None
    track_within_s: float = math.inf
    others: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobMedia:
    """A job's checked source and sound as they are on this node, and what is shown of them when.
    `others`: the SHA-256 of the sounds of segments, in order.
    """

    source: SourceVideo
    audio: SpeechAudio
    timeline: Timeline
    others: tuple[str, ...] = ()


def open_media(
    files: JobFiles, work_dir: Path, options: JobOptions, limits: MediaLimits
) -> JobMedia:
    """Check both files, and write what the stages read in addition to them into `work_dir`.

    Raises:
        MediaError: an input or an option cannot be used; the message says why.
    """
    source, audio = _open_both(files, work_dir, options, limits)
    sounds = _open_sounds(files, source, audio, work_dir, options, limits)
    timeline = lay_out(source, sounds, options)
    if timeline.sound:
        audio = join_sound(audio, timeline.sound, work_dir)
    if not audio.is_tracked and audio.duration_s <= files.track_within_s:
        audio = make_track(audio, limits, options.encode.audio_bitrate_kbps)
    others = tuple(other.sha256 for other in sounds.others.values())
    return JobMedia(source, audio, timeline, others)


def _open_sounds(
    files: JobFiles,
    source: SourceVideo,
    audio: SpeechAudio,
    work_dir: Path,
    options: JobOptions,
    limits: MediaLimits,
) -> Sounds:
    """Decode the sounds of segments, and that of the video if it is heard between them."""
    if not options.time.segments:
        return Sounds(audio)
    known = files.digests.others if files.digests else [None] * len(files.others)
    others = {
        url: open_audio(path, work_dir, limits, sha256=sha256, track_within_s=-1.0)
        for (url, path), sha256 in zip(files.others.items(), known, strict=True)
    }
    own = open_video_sound(files.video, work_dir, limits, source.sha256)
    return Sounds(audio, others) if own is None else Sounds(audio, others, *own)


def _open_both(
    files: JobFiles, work_dir: Path, options: JobOptions, limits: MediaLimits
) -> tuple[SourceVideo, SpeechAudio]:
    """Check both files concurrently. If both are unusable, the video's error is the one raised."""
    is_over = threading.Event()

    def check() -> None:
        if is_over.is_set():
            raise JobCancelled("The video cannot be used.")

    digests = files.digests
    # If only a part of the sound may be used, the track is made when it is known which.
    track_within_s = -1.0 if options.time.may_cut_sound else files.track_within_s
    with ThreadPoolExecutor(1, thread_name_prefix="audio") as other:
        kbps = options.encode.audio_bitrate_kbps
        sha256 = None if digests is None else digests.audio
        opening = partial(open_audio, sha256=sha256, track_within_s=track_within_s)
        audio = other.submit(opening, files.audio, work_dir, limits, kbps, check)
        try:
            sha256 = None if digests is None else digests.video
            source = probe_video(files.video, limits, work_dir, sha256=sha256)
            target_size(source.width, source.height, options.frame)
            _check_fps(options.frame.fps, limits)
            return source, audio.result()
        finally:
            is_over.set()


def _check_fps(fps: float | None, limits: MediaLimits) -> None:
    if fps is not None and not MIN_FPS <= fps <= limits.max_fps:
        raise InvalidOptions(
            f"{fps:g} frames a second cannot be made: {MIN_FPS} to {limits.max_fps:g} are "
            "accepted.",
            hint="Leave `fps` out to play the video at its own rate.",
        )
