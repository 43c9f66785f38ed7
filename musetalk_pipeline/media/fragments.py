"""Pieces and their sound as fragmented MP4, for players that show a video while it is made.

    init section    ftyp and moov: the parameters of both tracks
    fragment        moof and mdat: the pictures of one piece, and the sound that begins during them

The packets are those of the finished MP4, with the same times. Only the packet that an AAC encoder
puts before time 0 is left out, because players treat it differently. Without it the first 1024
samples of the sound are faded in.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import Picture
from musetalk_pipeline.errors import Stage, StageFailed
from musetalk_pipeline.media.packets import JoinedPieces, Sounds, open_piece

# Frames that are reordered delay the first one. As in the MP4, an edit list takes that delay back.
# ffmpeg writes it once it has seen a packet (delay_moov).
_INIT_FLAGS = "frag_custom+delay_moov+default_base_moof+skip_trailer"
# A fragment has a muxer of its own, which does not begin at time 0 (frag_discont).
_FRAGMENT_FLAGS = "frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer"


class Fragments:
    """Makes the fragments of one video from its pieces, which are given in order.

    `track`: the sound, an .m4a, which stays open until `close`.
    """

    def __init__(self, track: Path, picture: Picture, fps: Fraction) -> None:
        """Open the sound.

        Raises:
            StageFailed: it cannot be read.
        """
        self._picture, self._fps = picture, fps
        with _translated():
            self._sound_file = av.open(str(track), mode="r")
            self._sounds = Sounds(self._sound_file)
        for _ in self._sounds.before(Fraction(0)):
            pass
        self._joined: JoinedPieces | None = None
        self._made = 0

    @property
    def frames(self) -> int:
        """Return how many frames the fragments so far have."""
        return 0 if self._joined is None else self._joined.count

    def close(self) -> None:
        """Close the sound."""
        self._sound_file.close()

    def init_section(self, piece: NDArray[np.uint8]) -> bytes:
        """Return the init section of the video whose first piece this is.

        Raises:
            StageFailed: the piece cannot be used.
        """
        file = io.BytesIO()
        with (
            _translated(),
            open_piece(piece) as template,
            self._output(file, _INIT_FLAGS, 1) as out,
        ):
            video, _ = self._add_tracks(out, template)
            joined = JoinedPieces(template, self._picture, self._fps)
            first = next(joined.packets([piece]))
            first.stream = video
            out.mux_one(first)
        return file.getvalue()[: _start_of_fragment(file.getbuffer())]

    def next(self, piece: NDArray[np.uint8], *, is_last: bool = False) -> bytes:
        """Return the fragment of the next piece.

        Raises:
            StageFailed: the piece does not fit to the ones before, or cannot be read.
        """
        file = io.BytesIO()
        self._made += 1
        with _translated(), open_piece(piece) as template:
            if self._joined is None:
                self._joined = JoinedPieces(template, self._picture, self._fps)
            with self._output(file, _FRAGMENT_FLAGS, self._made) as out:
                self._write(out, template, self._joined, piece, is_last)
        return file.getvalue()[_start_of_fragment(file.getbuffer()) :]

    def _write(
        self,
        out: OutputContainer,
        template: InputContainer,
        joined: JoinedPieces,
        piece: NDArray[np.uint8],
        is_last: bool,
    ) -> None:
        video, audio = self._add_tracks(out, template)
        for packet in joined.packets([piece]):
            for sound in self._sounds.before(Fraction(packet.dts or 0) / self._fps):
                sound.stream = audio
                out.mux_one(sound)
            packet.stream = video
            out.mux_one(packet)
        for sound in self._sounds.before(joined.count / self._fps, is_end=is_last):
            sound.stream = audio
            out.mux_one(sound)

    def _output(self, file: io.BytesIO, flags: str, number: int) -> OutputContainer:
        options = {
            "movflags": flags,
            "video_track_timescale": str(self._fps.numerator),  # the MP4's
            "avoid_negative_ts": "disabled",  # the first frames are decoded before time 0
            "use_editlist": "1",
            "fragment_index": str(number),
        }
        return av.open(file, mode="w", format="mp4", options=options)

    def _add_tracks(
        self, out: OutputContainer, template: InputContainer
    ) -> tuple[av.VideoStream, av.AudioStream]:
        video = out.add_stream_from_template(template.streams.video[0], opaque=True)
        video.time_base = 1 / self._fps
        return video, out.add_stream_from_template(self._sound_file.streams.audio[0])


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what FFmpeg cannot read or write as a failure of the stage."""
    try:
        yield
    except av.FFmpegError as exc:
        text = "A segment cannot be turned into a part of a stream."
        raise StageFailed(text, stage=Stage.POSTPROCESSING) from exc


def _start_of_fragment(data: memoryview) -> int:
    """Return where the first `moof` box of an MP4 file begins."""
    at = 0
    while bytes(data[at + 4 : at + 8]) != b"moof":
        at += int.from_bytes(data[at : at + 4], "big")
    return at
