"""Fragments: what a player of a growing stream gets is what the finished MP4 has."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_clips import ffmpeg
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import ColourTags, Picture
from musetalk_pipeline.errors import StageFailed
from musetalk_pipeline.media.encode import PieceEncoder, stitch
from musetalk_pipeline.media.fragments import Fragments
from musetalk_pipeline.options import EncodeOptions

WIDTH, HEIGHT = 128, 96
PICTURE = Picture(WIDTH, HEIGHT, WIDTH, HEIGHT, 0, 0, None, ColourTags("bt709", "tv"))
Piece = NDArray[np.uint8]
# The last one is as short as a piece can be.
LENGTHS = (25, 13, 3, 18, 1)


@pytest.fixture(scope="module")
def encode() -> Callable[..., list[Piece]]:
    """Encode 60 recognisable frames as pieces of `LENGTHS`."""
    size = f"{WIDTH}x{HEIGHT}"
    picture = ("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25", "-frames:v", "60")
    raw = ffmpeg(*picture, "-pix_fmt", "yuv420p", "-f", "rawvideo", "pipe:1")
    frames = np.frombuffer(raw, np.uint8).reshape(60, HEIGHT * 3 // 2, WIDTH)

    def pieces(fps: Fraction, preset: str = "veryfast") -> list[Piece]:
        made, start = [], 0
        for length in LENGTHS:
            with PieceEncoder(PICTURE, fps, EncodeOptions(preset=preset)) as encoder:
                for frame in frames[start : start + length]:
                    encoder.add(frame)
                made.append(encoder.finish())
            start += length
        return made

    return pieces


@pytest.fixture(scope="module")
def track(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("track") / "tone.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=d=6:r=44100", "-c:a", "aac", path)
    return path


def fragments_of(pieces: list[Piece], track: Path, fps: Fraction) -> list[bytes]:
    """Return the init section and all fragments."""
    made = Fragments(track, PICTURE, fps)
    try:
        init = made.init_section(pieces[0])
        last = len(pieces) - 1
        return [init, *(made.next(p, is_last=n == last) for n, p in enumerate(pieces))]
    finally:
        made.close()


def packets(path: Path, kind: str) -> list[tuple[Fraction, Fraction, bytes]]:
    """Return when each packet is shown and decoded, in seconds, and its bytes."""
    with av.open(str(path)) as container:
        return [
            (p.pts * p.time_base, p.dts * p.time_base, bytes(p))
            for p in container.demux(**{kind: 0})
            if p.size
        ]


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)], ids=str)
def test_a_stream_has_the_packets_of_the_mp4_at_the_same_times(fps, encode, track, tmp_path):
    pieces = encode(fps)
    whole, stream = tmp_path / "whole.mp4", tmp_path / "stream.mp4"
    stitch(iter(pieces), track, whole, PICTURE, fps)
    stream.write_bytes(b"".join(fragments_of(pieces, track, fps)))
    assert packets(stream, "video") == packets(whole, "video")
    early, *sounds = packets(whole, "audio")
    assert early[0] < 0 and packets(stream, "audio") == sounds


def test_each_fragment_is_what_its_piece_was(encode, track, tmp_path):
    """A player may begin anywhere: each can be decoded with the init section alone."""
    fps = Fraction(25)
    init, *fragments = fragments_of(encode(fps), track, fps)
    start = 0
    for length, data in zip(LENGTHS, fragments, strict=True):
        alone = tmp_path / "alone.mp4"
        alone.write_bytes(init + data)
        with av.open(str(alone)) as container:
            shown = [f.pts * f.time_base for f in container.decode(video=0)]
        assert shown == [Fraction(n, 25) for n in range(start, start + length)]
        start += length


def test_ffmpeg_plays_them_over_hls_without_a_word(encode, track, tmp_path):
    fps = Fraction(30000, 1001)
    pieces = encode(fps)
    whole = tmp_path / "whole.mp4"
    stitch(iter(pieces), track, whole, PICTURE, fps)
    init, *fragments = fragments_of(pieces, track, fps)
    (tmp_path / "init.mp4").write_bytes(init)
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-TARGETDURATION:1", '#EXT-X-MAP:URI="init.mp4"']
    for number, (length, data) in enumerate(zip(LENGTHS, fragments, strict=True)):
        (tmp_path / f"{number}.m4s").write_bytes(data)
        lines += [f"#EXTINF:{float(length / fps):.6f},", f"{number}.m4s"]
    playlist = tmp_path / "stream.m3u8"
    playlist.write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    assert sums_of_frames(playlist) == sums_of_frames(whole)


def sums_of_frames(path: Path) -> list[str]:
    """Return ffmpeg's line about each frame that it shows: its time and a digest of its pixels."""
    command = ["ffmpeg", "-v", "warning", "-xerror", "-i", path, "-map", "0:v", "-f", "framemd5"]
    done = subprocess.run([*command, "-"], capture_output=True, timeout=60, check=True, text=True)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if not line.startswith("#")]


def test_a_piece_that_does_not_fit_is_refused(encode, track):
    fps = Fraction(25)
    pieces = encode(fps)
    other = encode(fps, "ultrafast")[1]
    made = Fragments(track, PICTURE, fps)
    made.next(pieces[0])
    with pytest.raises(StageFailed, match="parameter sets differ"):
        made.next(other)
    made.close()


def test_a_sound_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "no.m4a").write_bytes(b"no sound" * 100)
    with pytest.raises(StageFailed):
        Fragments(tmp_path / "no.m4a", PICTURE, Fraction(25))
