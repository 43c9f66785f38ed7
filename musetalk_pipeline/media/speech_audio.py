"""The speech of a job: validated, decoded once, and kept in the two forms that the stages need."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import SoundStream, SpeechAudio
from musetalk_pipeline.errors import (
    AudioTooShort,
    InvalidAudio,
    InvalidVideo,
    MediaError,
    at_fault,
)
from musetalk_pipeline.files import replacing
from musetalk_pipeline.media.containers import WAV
from musetalk_pipeline.media.joined_sound import AAC_RATES, encode_joined
from musetalk_pipeline.media.media_file import (
    HEADER_S,
    WHOLE_FILE,
    MediaFile,
    admit,
    seconds,
    too_long,
)
from musetalk_pipeline.media.sandbox import Child, ChildLimits, ffmpeg, local_input, run
from musetalk_pipeline.options import MediaLimits
from musetalk_pipeline.plan import MIN_SAMPLES, SAMPLE_RATE
from musetalk_pipeline.watch import Check, go_on

CUT_OFF_SHARE = 0.9  # see _check_length
CUT_OFF_S = 1.0
MIN_RATE, MAX_RATE, MAX_CHANNELS = 1000, 384_000, 16
BLOCK_FRAMES = 1 << 16

AUDIO_CODECS = frozenset(
    {
        *("aac", "mp3", "mp2", "mp1", "opus", "vorbis", "flac", "alac", "ac3", "eac3", "amr_nb"),
        *("amr_wb", "wmav1", "wmav2", "wmapro", "speex", "adpcm_ms", "adpcm_ima_wav", "dts"),
        *("adpcm_ima_qt", "adpcm_swf", "gsm", "gsm_ms", "nellymoser", "qdm2", "truehd"),
    }
)


@at_fault("audio")
def open_audio(
    path: Path,
    out_dir: Path,
    limits: MediaLimits,
    bitrate_kbps: int = 128,
    check: Check = go_on,
    *,
    sha256: str | None = None,
    track_within_s: float = math.inf,
) -> SpeechAudio:
    """Validate a sound file (or a video's sound) and write its two forms into `out_dir`.

    Both hold the same samples from the first one on: gaps and offsets in the file's times are
    closed, as the reference's reader does. `check` is called regularly, and raises once the result
    is no longer needed. `sha256`: the file's digest in hex, if it has been computed; otherwise it
    is computed here. `track_within_s`: if the sound is longer, `make_track` has to be called before
    the track is used. A minute takes 0.8 s, and no stage but the last one needs it.

    Raises:
        InvalidAudio, AudioTooShort, MediaTooLarge: refused. Sending it again cannot help.
        DeadlineExceeded: reading it took too long.
    """
    media = admit(path, limits, InvalidAudio, sha256)
    header = _choose_audio(media)
    stream = SoundStream(
        path,
        media.container.demuxer,
        header["index"],
        int(header["sample_rate"]),
        int(header["channels"]),
    )
    stem = f"{path.name}.{media.sha256[:12]}"
    pcm_path, track_path = out_dir / f"{stem}.f32", out_dir / f"{stem}.m4a"
    is_later = media.duration_s > track_within_s
    with replacing(pcm_path) as pcm, contextlib.ExitStack() as files:
        command = _samples_to_pipe(stream)
        if not is_later:
            command += _track(stream, files.enter_context(replacing(track_path)), bitrate_kbps)
        n_samples, found_s = _decode(_reading(stream, command), stream, pcm, limits, check)
        _check_length(media, header, n_samples, found_s)
    return SpeechAudio(
        pcm_path=pcm_path,
        track_path=track_path,
        sha256=media.sha256,
        size_bytes=media.size_bytes,
        n_samples=n_samples,
        duration_s=n_samples / SAMPLE_RATE,
        stream=stream,
        is_tracked=not is_later,
    )


def open_video_sound(
    path: Path, out_dir: Path, limits: MediaLimits, sha256: str
) -> tuple[SpeechAudio, Fraction] | None:
    """Return the sound of a video, and how many seconds after the picture it begins; None if it
    has none. Its track is not made.

    Raises:
        InvalidAudio, MediaTooLarge, DeadlineExceeded: as `open_audio`, with the video at fault.
    """
    media = admit(path, limits, InvalidVideo, sha256)
    if all(stream.get("codec_type") != "audio" for stream in media.streams):
        return None
    try:
        audio = open_audio(path, out_dir, limits, sha256=sha256, track_within_s=-1.0)
    except AudioTooShort:
        return None
    except MediaError as error:
        error.input = "video"
        raise
    picture_s = media.start_s
    if media.container.starts_with_picture:
        picture_s = min(_start_s(one) for one in media.streams if one["codec_type"] == "video")
    return audio, _start_s(_choose_audio(media)) - picture_s


def _start_s(stream: dict[str, Any]) -> Fraction:
    return Fraction(stream.get("start_time") or 0)


def make_track(audio: SpeechAudio, limits: MediaLimits, bitrate_kbps: int = 128) -> SpeechAudio:
    """Encode the sound of a job, unless that has been done; return it with its track.

    Raises:
        InvalidAudio: it cannot be decoded, though its samples could be.
        DeadlineExceeded: it took too long.
    """
    tracked = replace(audio, is_tracked=True)
    if audio.is_tracked or audio.track_path.exists():
        return tracked
    with replacing(audio.track_path) as track:
        if audio.parts:
            encode_joined(audio.parts, track, limits, bitrate_kbps)
            return tracked
        assert audio.stream is not None, "what is not tracked yet has been opened here"
        limit = ChildLimits(HEADER_S + limits.max_duration_s, file_bytes=limits.max_bytes)
        command = _reading(audio.stream, _track(audio.stream, track, bitrate_kbps))
        done = run(command, limit)
        _require_decoded(done.returncode, done.message)
    return tracked


def _require_decoded(returncode: int, message: str) -> None:
    if returncode != 0:
        said = message or "it is damaged"
        raise InvalidAudio(f"The audio cannot be decoded: {said}.", ffmpeg=said)


def _check_length(media: MediaFile, stream: dict[str, Any], n_samples: int, found_s: float) -> None:
    """Refuse sound that is cut off or too short.

    Cut off means that more than 10 % and more than 1 s of what the header announces are missing.
    Less is ordinary, because encoders round, and some headers are only estimates.
    """
    declared_s = seconds(stream.get("duration")) or media.duration_s
    if media.container is WAV:
        declared_s = media.duration_s
    is_cut = found_s < CUT_OFF_SHARE * declared_s and declared_s - found_s > CUT_OFF_S
    if media.container.declares_length and is_cut:
        raise InvalidAudio(
            f"The audio is cut off: its header announces {declared_s:.1f} s but only "
            f"{found_s:.1f} s are present. Send the whole file.",
            hint=WHOLE_FILE,
            declared_s=round(declared_s, 3),
            found_s=round(found_s, 3),
        )
    if n_samples == 0:
        raise InvalidAudio("The audio holds no samples that can be decoded.")
    if n_samples < MIN_SAMPLES:
        length_ms = n_samples * 1000 // SAMPLE_RATE
        raise AudioTooShort(
            f"The audio is {length_ms} ms long; at least 80 ms are needed.",
            duration_s=length_ms / 1000,
        )


def _choose_audio(media: MediaFile) -> dict[str, Any]:
    sounds = [s for s in media.streams if s.get("codec_type") == "audio"]
    if not sounds:
        raise InvalidAudio(
            "The audio file holds no sound.",
            hint="Send sound, or a video with some; make sure that the two are not swapped.",
            streams=len(media.streams),
        )
    stream: dict[str, Any] = max(sounds, key=lambda s: s.get("disposition", {}).get("default", 0))
    codec = stream.get("codec_name", "unknown")
    if codec not in AUDIO_CODECS and not codec.startswith("pcm_"):
        raise InvalidAudio(
            f"The audio's codec ({codec}) is not accepted. WAV, MP3 and AAC are.", codec=codec
        )
    rate, channels = int(stream.get("sample_rate", 0)), int(stream.get("channels", 0))
    if not MIN_RATE <= rate <= MAX_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise InvalidAudio(
            f"The audio has {channels} channels at {rate} Hz; 1 to {MAX_CHANNELS} at "
            f"{MIN_RATE // 1000} to {MAX_RATE // 1000} kHz are accepted.",
            channels=channels,
            sample_rate=rate,
        )
    return stream


def _reading(stream: SoundStream, outputs: Sequence[str]) -> list[str]:
    """Return the ffmpeg command that decodes the sound once for these outputs."""
    return ffmpeg(*local_input(stream.path, stream.demuxer), *outputs)


# In both outputs times are counted from the first sample, so that they agree.
_FROM_FIRST_SAMPLE = "asetpts=N/SR/TB"


def _samples_to_pipe(stream: SoundStream) -> list[str]:
    return [
        *_chosen(stream, _FROM_FIRST_SAMPLE),
        *("-c:a", "pcm_f32le", "-ar", str(stream.sample_rate), "-ac", str(stream.channels)),
        *("-f", "f32le", "pipe:1"),
    ]


def _track(stream: SoundStream, track: Path, bitrate_kbps: int) -> list[str]:
    rate = stream.sample_rate if stream.sample_rate in AAC_RATES else AAC_RATES[-1]
    # The encoder stops at the first value that is not a number; integer samples cannot hold one.
    return [
        *_chosen(stream, f"{_FROM_FIRST_SAMPLE},aformat=sample_fmts=s32"),
        *("-c:a", "aac", "-b:a", f"{bitrate_kbps}k", "-ar", str(rate)),
        *("-ac", str(min(2, stream.channels)), "-f", "mp4", f"file:{track.resolve()}"),
    ]


def _chosen(stream: SoundStream, filters: str) -> list[str]:
    return ["-map", f"0:{stream.stream}", "-map_metadata", "-1", "-af", filters]


def _decode(
    command: list[str], stream: SoundStream, pcm: Path, limits: MediaLimits, check: Check
) -> tuple[int, float]:
    """Write the 16 kHz samples to `pcm`; return their number and the seconds that were decoded.

    One block is held at a time. The result equals librosa's one-shot soxr HQ resampling bit for
    bit, its length included.
    """
    rate, channels = stream.sample_rate, stream.channels
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    block = bytearray(BLOCK_FRAMES * channels * 4)
    n_read = 0
    got = len(block)
    limit = ChildLimits(HEADER_S + limits.max_duration_s, file_bytes=limits.max_bytes)
    with Child(command, limit) as child, pcm.open("wb") as file:
        while got == len(block):
            check()
            got = child.read_into(memoryview(block))
            sound = np.frombuffer(block, np.float32, got // (4 * channels) * channels)
            n_read += len(sound) // channels
            if n_read > limits.max_duration_s * rate:
                raise too_long("The audio file", n_read / rate, limits)
            mono = _mean_of_channels(sound.reshape(-1, channels))
            is_last = got < len(block)
            if rate != SAMPLE_RATE:
                mono = resampler.resample_chunk(mono, last=is_last)
            file.write(mono.tobytes())
        n_samples = math.ceil(n_read * (SAMPLE_RATE / rate))  # librosa's, cut or filled with zeros
        file.truncate(4 * n_samples)
        _require_decoded(child.wait(), child.message)
    return n_samples, n_read / rate


def _mean_of_channels(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (n,) of (n, channels). NaN becomes silence; infinity becomes 1 or -1."""
    planes = np.ascontiguousarray(sound.T)
    mono: NDArray[np.float32] = planes.mean(axis=0, dtype=np.float32)
    return np.nan_to_num(mono, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
