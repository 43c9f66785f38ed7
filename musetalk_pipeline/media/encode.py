"""One piece per segment, encoded once; pieces joined and the sound added without encoding again.

A piece is a small MP4 in memory whose times begin at 0. Every piece begins with an IDR frame and
has the same parameter sets (`stitchable=1`), so joining them only shifts their packets in time.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import ColourTags, Picture, SpeechAudio
from musetalk_pipeline.errors import Stage, StageFailed
from musetalk_pipeline.files import replacing
from musetalk_pipeline.options import EncodeOptions

# ITU-T H.273 numbers; 2 is "unspecified".
_SPACES = {
    "bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7,
    "bt2020nc": 9, "bt2020c": 10,
}  # fmt: skip
_PRIMARIES = {
    "bt709": 1, "bt470m": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "film": 8,
    "bt2020": 9, "smpte428": 10, "smpte431": 11, "smpte432": 12, "ebu3213": 22,
}  # fmt: skip
_TRANSFERS = {
    "bt709": 1, "gamma22": 4, "bt470m": 4, "gamma28": 5, "bt470bg": 5, "smpte170m": 6,
    "smpte240m": 7, "linear": 8, "iec61966-2-4": 11, "bt1361e": 12, "iec61966-2-1": 13,
    "bt2020-10": 14, "bt2020-12": 15, "smpte2084": 16, "smpte428": 17, "arib-std-b67": 18,
}  # fmt: skip
_RANGES = {"tv": 1, "pc": 2}
_UNSPECIFIED = 2


class PieceEncoder:
    """Encodes the frames of one segment with libx264; `finish` returns the piece.

    Use as a context manager, so that an abandoned encoder is closed.
    """

    def __init__(
        self, picture: Picture, fps: Fraction, options: EncodeOptions, *, threads: int = 1
    ) -> None:
        self._picture, self._fps = picture, fps
        self._file = io.BytesIO()
        self._container = av.open(
            self._file, "w", format="mp4", options={"video_track_timescale": str(fps.numerator)}
        )
        stream = self._container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
        stream.time_base = 1 / fps
        context = stream.codec_context
        context.time_base = 1 / fps
        context.thread_count = threads
        _tag(context, picture.colour)
        context.options = {
            "crf": str(options.crf),
            "preset": options.preset,
            # All pieces get the same parameter sets whatever their pictures need.
            "x264-params": "stitchable=1:open-gop=0",
        }
        self._stream = stream
        self._count = 0

    def __enter__(self) -> PieceEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Encode the next frame: (height * 3 // 2, width) uint8 I420 of the picture's size."""
        expected = (self._picture.height * 3 // 2, self._picture.width)
        if frame.shape != expected:
            raise ValueError(f"a frame of {frame.shape} for a picture of {expected}")
        video_frame = av.VideoFrame.from_ndarray(frame, format="yuv420p")
        video_frame.pts, video_frame.time_base = self._count, 1 / self._fps
        self._count += 1
        self._mux(self._stream.encode(video_frame))

    def finish(self) -> NDArray[np.uint8]:
        """Return the piece as (size,) uint8, a view of bytes."""
        self._mux(self._stream.encode(None))
        self._container.close()
        return np.frombuffer(self._file.getvalue(), np.uint8)

    def _mux(self, packets: list[av.Packet[av.VideoStream]]) -> None:
        for packet in packets:
            packet.duration = 1  # the encoder does not set it; the last one would be lost
            self._container.mux_one(packet)


def stitch(
    pieces: Iterable[NDArray[np.uint8]],
    track: SpeechAudio | Path,
    out_path: Path,
    picture: Picture,
    fps: Fraction,
) -> int:
    """Join `pieces` in order, add the sound, write an MP4 whose index comes first; return the
    number of frames.

    Packets are copied, not encoded again. One piece is held at a time. The file appears under
    `out_path` when it is complete.

    Raises:
        StageFailed: the pieces do not fit together, or there are none.
    """
    track_path = track.track_path if isinstance(track, SpeechAudio) else track
    with replacing(out_path) as temporary:
        return _write(pieces, track_path, temporary, picture, fps)


def _write(
    pieces: Iterable[NDArray[np.uint8]],
    track_path: Path,
    out_path: Path,
    picture: Picture,
    fps: Fraction,
) -> int:
    ordered = iter(pieces)
    first = next(ordered, None)
    if first is None:
        raise StageFailed("There is nothing to stitch.", stage=Stage.POSTPROCESSING)
    options = {"movflags": "+faststart", "video_track_timescale": str(fps.numerator)}
    with (
        _opened(first) as template,
        av.open(str(track_path), mode="r") as sound_file,
        av.open(str(out_path), mode="w", format="mp4", options=options) as out,
    ):
        video = out.add_stream_from_template(template.streams.video[0], opaque=True)
        video.time_base = 1 / fps
        audio = out.add_stream_from_template(sound_file.streams.audio[0])
        joined = _JoinedPieces(template, picture, fps)
        sounds = _Sounds(sound_file)
        for packet in joined.packets(itertools.chain([first], ordered)):
            # Sound is written before the picture that it belongs to, so that neither is buffered.
            for sound in sounds.before(Fraction(packet.dts or 0) / fps):
                sound.stream = audio
                out.mux_one(sound)
            packet.stream = video
            out.mux_one(packet)
        for sound in sounds.before(joined.count / fps, is_end=True):
            sound.stream = audio
            out.mux_one(sound)
    return joined.count


def _opened(piece: NDArray[np.uint8]) -> InputContainer:
    return av.open(io.BytesIO(piece.data), mode="r", format="mp4")


class _Sounds:
    """The packets of the sound, read up to a time."""

    def __init__(self, container: InputContainer) -> None:
        self._packets = (packet for packet in container.demux(audio=0) if packet.size)
        self._waiting = next(self._packets, None)

    def before(
        self, time_s: Fraction, *, is_end: bool = False
    ) -> Iterator[av.Packet[av.AudioStream]]:
        """Yield the packets that start before `time_s`.

        At the end the last one is declared shorter, so that the sound is as long as the picture.
        """
        while self._waiting is not None and _start_s(self._waiting) < time_s:
            packet, self._waiting = self._waiting, next(self._packets, None)
            if is_end and packet.time_base is not None:
                left = (time_s - _start_s(packet)) / packet.time_base
                packet.duration = min(packet.duration or 0, int(left))
            yield packet


def _start_s(packet: av.Packet[av.AudioStream]) -> Fraction:
    assert packet.pts is not None and packet.time_base is not None
    return packet.pts * packet.time_base


class _JoinedPieces:
    """The packets of all pieces, their times in frames from the start of the whole video."""

    def __init__(self, template: InputContainer, picture: Picture, fps: Fraction) -> None:
        context = template.streams.video[0].codec_context
        if (context.width, context.height) != (picture.width, picture.height):
            raise _unfit(0, "their size is not the picture's")
        self._parameters = context.extradata
        self._ahead = context.reorder_depth
        self._fps = fps
        self.count = 0

    def packets(self, pieces: Iterable[NDArray[np.uint8]]) -> Iterator[av.Packet[av.VideoStream]]:
        for number, piece in enumerate(pieces):
            with _opened(piece) as container:
                if container.streams.video[0].codec_context.extradata != self._parameters:
                    raise _unfit(number, "their H.264 parameter sets differ")
                yield from self._moved(container, number)

    def _moved(self, container: InputContainer, number: int) -> Iterator[av.Packet[av.VideoStream]]:
        start = self.count
        for packet in container.demux(video=0):
            if packet.pts is None or packet.dts is None or packet.time_base is None:
                continue  # the demuxer's end mark
            if self.count == start and not packet.is_keyframe:
                raise _unfit(number, "one does not begin with a key frame")
            # One frame is decoded per frame shown, ahead by as many as may be reordered. The
            # pieces' own decoding times agree, except in pieces shorter than that.
            packet.pts = start + int(packet.pts * packet.time_base * self._fps)
            packet.dts = self.count - self._ahead
            if packet.dts > packet.pts:
                raise _unfit(number, "one reorders its frames further than the first")
            packet.duration = 1
            packet.time_base = 1 / self._fps
            self.count += 1
            yield packet


def _unfit(number: int, why: str) -> StageFailed:
    return StageFailed(
        f"The encoded segments do not fit together: {why}.",
        stage=Stage.POSTPROCESSING,
        piece=number,
    )


def _tag(context: av.VideoCodecContext, colour: ColourTags) -> None:
    context.colorspace = _SPACES.get(colour.space, _UNSPECIFIED)
    context.color_primaries = _PRIMARIES.get(colour.primaries, _UNSPECIFIED)
    context.color_trc = _TRANSFERS.get(colour.transfer, _UNSPECIFIED)
    context.color_range = _RANGES.get(colour.range, 0)
