"""One piece per segment, encoded once; pieces joined and the sound added without encoding again.

A piece is a small MP4 in memory whose times begin at 0. Every piece begins with an IDR frame and
has the same parameter sets (`stitchable=1`), so joining them only shifts their packets in time.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import ColourTags, Picture, SpeechAudio
from musetalk_pipeline.errors import Stage, StageFailed
from musetalk_pipeline.files import replacing
from musetalk_pipeline.media.packets import JoinedPieces, Sounds, open_piece
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
        open_piece(first) as template,
        av.open(str(track_path), mode="r") as sound_file,
        av.open(str(out_path), mode="w", format="mp4", options=options) as out,
    ):
        video = out.add_stream_from_template(template.streams.video[0], opaque=True)
        video.time_base = 1 / fps
        audio = out.add_stream_from_template(sound_file.streams.audio[0])
        joined = JoinedPieces(template, picture, fps)
        sounds = Sounds(sound_file)
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


def _tag(context: av.VideoCodecContext, colour: ColourTags) -> None:
    context.colorspace = _SPACES.get(colour.space, _UNSPECIFIED)
    context.color_primaries = _PRIMARIES.get(colour.primaries, _UNSPECIFIED)
    context.color_trc = _TRANSFERS.get(colour.transfer, _UNSPECIFIED)
    context.color_range = _RANGES.get(colour.range, 0)
