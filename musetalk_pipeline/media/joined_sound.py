"""The sound of a job that is not one whole file: parts of sounds and silence, one after the other.

    parts ─┬► join_sound     the 16 kHz samples of each, copied into one file
           └► encode_joined  a decoder for each sound, which only goes forwards ─► one AAC track

Both are cut at the nearest sample to the same times. Neither is ever held whole.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import SoundPart, SoundStream, SpeechAudio
from musetalk_pipeline.files import replacing
from musetalk_pipeline.media.media_file import HEADER_S
from musetalk_pipeline.media.sandbox import Child, ChildLimits, ffmpeg, local_input
from musetalk_pipeline.options import MediaLimits
from musetalk_pipeline.plan import SAMPLE_RATE

AAC_RATES = (44_100, 48_000)
CHUNK_SAMPLES = 1 << 16
SAMPLE_BYTES = 4  # float32
MOST_DECODERS = 4  # of different sounds; one that is used again later starts anew


def join_sound(audio: SpeechAudio, parts: Sequence[SoundPart], out_dir: Path) -> SpeechAudio:
    """Return the sound that consists of `parts`, as the sound of the job with the file of `audio`.

    Its samples are written into `out_dir`, those of parts that are not spoken as silence. Its track
    has yet to be made.
    """
    joined = replace(audio, parts=tuple(parts), is_tracked=False)
    stem = f"joined.{joined.key[:12]}"
    pcm_path = out_dir / f"{stem}.f32"
    n_samples = sum(part.n_samples for part in parts)
    with replacing(pcm_path) as path, path.open("wb") as file:
        for part in parts:
            _copy_samples(part, file)
        file.truncate(n_samples * SAMPLE_BYTES)
    return replace(
        joined,
        pcm_path=pcm_path,
        track_path=out_dir / f"{stem}.m4a",
        n_samples=n_samples,
        duration_s=n_samples / SAMPLE_RATE,
    )


def encode_joined(
    parts: Sequence[SoundPart], path: Path, limits: MediaLimits, bitrate_kbps: int
) -> None:
    """Encode the sound that consists of `parts` as AAC, with the best rate and channels of them.

    Raises:
        DeadlineExceeded: decoding took too long.
    """
    streams = [part.source.stream for part in parts if part.source and part.source.stream]
    rates = {stream.sample_rate for stream in streams}
    rate = rates.pop() if len(rates) == 1 and rates <= {*AAC_RATES} else AAC_RATES[-1]
    channels = min(2, max((stream.channels for stream in streams), default=1))
    layout = "stereo" if channels == 2 else "mono"
    with (
        av.open(str(path), "w", format="mp4") as out,
        contextlib.closing(at_rate(parts, rate, channels, limits)) as chunks,
    ):
        track = out.add_stream("aac", rate=rate, layout=layout)
        track.bit_rate = bitrate_kbps * 1000
        place = 0
        for chunk in chunks:
            frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
            place += chunk.shape[1]
            out.mux(track.encode(frame))
        out.mux(track.encode(None))


def _copy_samples(part: SoundPart, file: BinaryIO) -> None:
    end = file.tell() + part.n_samples * SAMPLE_BYTES
    if part.source is not None and part.is_spoken:
        left = part.n_samples * SAMPLE_BYTES
        with part.source.pcm_path.open("rb") as sound:
            sound.seek(part.start * SAMPLE_BYTES)
            while left and (data := sound.read(min(left, CHUNK_SAMPLES * SAMPLE_BYTES))):
                file.write(data)
                left -= len(data)
    file.seek(end)  # what is left out is silence


def at_rate(
    parts: Sequence[SoundPart], rate: int, channels: int, limits: MediaLimits
) -> Generator[NDArray[np.float32], None, None]:
    """Yield the sound in chunks of (channels, n) float32, -1 to 1."""
    place = 0  # in samples of 16 kHz
    with contextlib.closing(_Decoders(rate, channels, limits)) as decoders:
        for part in parts:
            count = _moved(place + part.n_samples, rate) - _moved(place, rate)
            place += part.n_samples
            stream = part.source.stream if part.source else None
            if stream is None:
                yield from _silence(count, channels)
            else:
                start = _moved(part.start, rate)
                yield from decoders.at(stream, start).read(start, count)


def _moved(samples: int, rate: int) -> int:
    """Return the nearest number of samples at `rate` to a number of them at 16 kHz."""
    return math.floor(Fraction(samples * rate, SAMPLE_RATE) + Fraction(1, 2))


def _silence(count: int, channels: int) -> Iterator[NDArray[np.float32]]:
    for done in range(0, count, CHUNK_SAMPLES):
        yield np.zeros((channels, min(CHUNK_SAMPLES, count - done)), np.float32)


class _Decoders:
    """The decoders of the sounds that were used last, at most MOST_DECODERS of them."""

    def __init__(self, rate: int, channels: int, limits: MediaLimits) -> None:
        self._how = rate, channels, limits
        self._open: OrderedDict[SoundStream, _Decoder] = OrderedDict()

    def at(self, stream: SoundStream, start: int) -> _Decoder:
        """Return one that has not gone beyond a sample of a sound."""
        decoder = self._open.pop(stream, None)
        if decoder is not None and decoder.place > start:
            decoder.close()
            decoder = None
        if decoder is None and len(self._open) == MOST_DECODERS:
            self._open.popitem(last=False)[1].close()
        self._open[stream] = decoder or _Decoder(stream, *self._how)
        return self._open[stream]

    def close(self) -> None:
        """End all of them."""
        for decoder in self._open.values():
            decoder.close()


class _Decoder:
    """Decodes one sound from its beginning. `place`: the sample that comes next."""

    def __init__(self, stream: SoundStream, rate: int, channels: int, limits: MediaLimits) -> None:
        command = ffmpeg(
            *local_input(stream.path, stream.demuxer),
            *("-map", f"0:{stream.stream}", "-map_metadata", "-1", "-af", "asetpts=N/SR/TB"),
            *("-c:a", "pcm_f32le", "-ar", str(rate), "-ac", str(channels)),
            *("-f", "f32le", "pipe:1"),
        )
        self._child = Child(command, ChildLimits(HEADER_S + limits.max_duration_s))
        self._channels = channels
        self.place = 0

    def read(self, start: int, count: int) -> Iterator[NDArray[np.float32]]:
        """Yield so many samples from `start` on; silence after the end of the sound."""
        for _ in self._take(start - self.place):
            pass
        yield from self._take(count)

    def close(self) -> None:
        """End the child."""
        self._child.kill()

    def _take(self, count: int) -> Iterator[NDArray[np.float32]]:
        while count > 0:
            chunk = np.zeros((min(CHUNK_SAMPLES, count), self._channels), np.float32)
            self._child.read_into(memoryview(chunk.data).cast("B"))
            self.place += len(chunk)
            count -= len(chunk)
            planes = np.nan_to_num(chunk.T, nan=0.0, posinf=1.0, neginf=-1.0)
            yield np.ascontiguousarray(planes.clip(-1.0, 1.0))
