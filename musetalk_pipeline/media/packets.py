"""The packets of encoded pieces and of the sound, with their times in the whole video.

Nothing is decoded or encoded: `stitch` and fragments.py write the same packets into files of
different forms.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture
from musetalk_pipeline.errors import Stage, StageFailed


def open_piece(piece: NDArray[np.uint8]) -> InputContainer:
    """Return the piece as a container that is to be closed."""
    return av.open(io.BytesIO(piece.data), mode="r", format="mp4")


class Sounds:
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


class JoinedPieces:
    """The packets of all pieces, their times in frames from the start of the whole video.

    `template`: the first piece. `count`: how many frames have been read so far.
    """

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
            with open_piece(piece) as container:
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
