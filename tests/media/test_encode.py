"""Pieces and stitching: look at what comes out with ffprobe and by decoding it again."""

from __future__ import annotations

import json
import subprocess
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from media_clips import ffmpeg
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import ColourTags, Picture
from musetalk_pipeline.errors import Stage, StageFailed
from musetalk_pipeline.media.encode import PieceEncoder, stitch
from musetalk_pipeline.media.speech_audio import open_audio
from musetalk_pipeline.options import EncodeOptions, MediaLimits

WIDTH, HEIGHT = 128, 96
BT709 = ColourTags("bt709", "tv", "bt709", "bt709")
PICTURE = Picture(WIDTH, HEIGHT, WIDTH, HEIGHT, 0, 0, None, BT709)
FAST = EncodeOptions(preset="veryfast")
RATES = [Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60), Fraction(50, 3)]
Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def frames() -> Frames:
    """60 frames, each recognisable."""
    size = f"{WIDTH}x{HEIGHT}"
    picture = ("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25", "-frames:v", "60")
    raw = ffmpeg(*picture, "-pix_fmt", "yuv420p", "-f", "rawvideo", "pipe:1")
    return np.frombuffer(raw, np.uint8).reshape(60, HEIGHT * 3 // 2, WIDTH)


@pytest.fixture(scope="module")
def track(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of sound."""
    folder = tmp_path_factory.mktemp("track")
    ffmpeg("-f", "lavfi", "-i", "sine=d=6:r=16000", folder / "tone.wav")
    return open_audio(folder / "tone.wav", folder, MediaLimits()).track_path


def piece(
    part: Frames, fps: Fraction, picture: Picture = PICTURE, options: EncodeOptions = FAST
) -> NDArray[np.uint8]:
    with PieceEncoder(picture, fps, options, threads=1) as encoder:
        for frame in part:
            encoder.add(frame)
        return encoder.finish()


def pieces(frames: Frames, fps: Fraction, size: int = 13) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(frames), size):
        yield piece(frames[start : start + size], fps)


def probed(path: Path, *arguments: str) -> dict[str, list[dict[str, str]]]:
    command = ["ffprobe", "-v", "error", *arguments, "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    result: dict[str, list[dict[str, str]]] = json.loads(done.stdout)
    return result


def decoded(path: Path) -> Frames:
    raw = ffmpeg("-i", path, "-pix_fmt", "yuv420p", "-f", "rawvideo", "pipe:1")
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT * 3 // 2, WIDTH)


def psnr_db(a: Frames, b: Frames) -> NDArray[np.float64]:
    error = ((a.astype(float) - b) ** 2).mean(axis=(1, 2))
    ratio: NDArray[np.float64] = 10 * np.log10(255**2 / np.maximum(error, 1e-9))
    return ratio


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_a_stitched_video_is_regular_and_in_order(
    fps: Fraction, frames: Frames, track: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    assert stitch(pieces(frames, fps), track, out, PICTURE, fps) == 60

    warned = subprocess.run(
        ["ffmpeg", "-v", "warning", "-xerror", "-i", out, "-f", "null", "-"],
        capture_output=True,
        timeout=60,
    )
    assert warned.returncode == 0 and warned.stderr == b""

    streams = probed(out, "-show_streams")["streams"]
    video, sound = streams
    assert Fraction(video["r_frame_rate"]) == Fraction(video["avg_frame_rate"]) == fps
    assert (video["nb_frames"], video["start_pts"], video["pix_fmt"]) == ("60", 0, "yuv420p")
    assert [video[f"color_{name}"] for name in ("space", "primaries", "transfer")] == ["bt709"] * 3
    assert video["color_range"] == "tv" and sound["codec_name"] == "aac"
    assert abs(float(video["duration"]) - 60 / fps) < 1e-5
    assert abs(float(sound["start_time"])) < 1e-6
    assert abs(float(sound["duration"]) - 60 / fps) <= 1 / fps

    packets = probed(out, "-select_streams", "v", "-show_packets")["packets"]
    base = Fraction(video["time_base"])
    times = sorted(int(packet["pts"]) * base for packet in packets)
    assert times == [n / fps for n in range(60)]
    assert {b - a for a, b in pairwise(int(p["dts"]) * base for p in packets)} == {1 / fps}
    assert all(int(packet["dts"]) <= int(packet["pts"]) for packet in packets)

    again = decoded(out)
    assert again.shape == frames.shape
    assert psnr_db(again, frames).min() > 35
    nearest = [int(np.argmax(psnr_db(frames, np.broadcast_to(f, frames.shape)))) for f in again]
    assert nearest == list(range(60))


def test_every_piece_begins_with_an_idr_frame(frames: Frames, track: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    stitch(pieces(frames, Fraction(25), 17), track, out, PICTURE, Fraction(25))
    shown = probed(out, "-select_streams", "v", "-show_frames")["frames"]
    keys = [n for n, frame in enumerate(shown) if frame["key_frame"]]
    assert set(keys) >= {0, 17, 34, 51}
    assert {frame["pict_type"] for frame in shown} == {"I", "P", "B"}


def test_the_index_comes_first_and_nothing_else_is_left(
    frames: Frames, track: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    stitch(pieces(frames, Fraction(25)), track, out, PICTURE, Fraction(25))
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_nothing_is_encoded_again(frames: Frames, track: Path, tmp_path: Path) -> None:
    """The joined stream holds the packets of the pieces and of the track, byte for byte."""
    parts = list(pieces(frames, Fraction(25)))
    out = tmp_path / "out.mp4"
    stitch(iter(parts), track, out, PICTURE, Fraction(25))

    def payloads(path: Path, kind: str) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(**{kind: 0}) if p.size]

    loose = []
    for number, part in enumerate(parts):
        (tmp_path / f"{number}.mp4").write_bytes(part.tobytes())
        loose += payloads(tmp_path / f"{number}.mp4", "video")
    assert payloads(out, "video") == loose
    sounds = payloads(out, "audio")
    assert sounds == payloads(track, "audio")[: len(sounds)]


def test_pieces_of_one_frame_and_of_many_join(frames: Frames, track: Path, tmp_path: Path) -> None:
    fps, out = Fraction(25), tmp_path / "out.mp4"
    cuts = [0, 1, 2, 5, 40, 41, 60]
    parts = [piece(frames[a:b], fps) for a, b in pairwise(cuts)]
    assert stitch(parts, track, out, PICTURE, fps) == 60
    assert psnr_db(decoded(out), frames).min() > 35


BT601 = ColourTags("smpte170m", "tv", "smpte170m", "smpte170m")


@pytest.mark.parametrize("tags", [ColourTags(), replace(BT709, range="pc"), BT601], ids=str)
def test_colour_tags_are_kept(
    tags: ColourTags, frames: Frames, track: Path, tmp_path: Path
) -> None:
    picture, out = replace(PICTURE, colour=tags), tmp_path / "out.mp4"
    stitch([piece(frames[:5], Fraction(25), picture)], track, out, picture, Fraction(25))
    video = probed(out, "-show_streams")["streams"][0]
    found = [video.get(f"color_{name}", "unknown") for name in ("space", "primaries", "transfer")]
    assert found == [tags.space, tags.primaries, tags.transfer]
    assert video.get("color_range", "unknown") in (tags.range, "tv" if tags == ColourTags() else "")
    assert psnr_db(decoded(out), frames[:5]).min() > 30 or tags.range == "pc"


def test_quality_follows_the_options(frames: Frames) -> None:
    sizes = [
        len(piece(frames[:20], Fraction(25), options=EncodeOptions(crf, "veryfast")))
        for crf in (10, 18, 30)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.5 * sizes[2]


def unlike(options: EncodeOptions, picture: Picture = PICTURE) -> Callable[[Frames], list[Frames]]:
    def parts(frames: Frames) -> list[Frames]:
        own = frames[:, : picture.height * 3 // 2, : picture.width]
        return [piece(frames[:9], Fraction(25)), piece(own[:9], Fraction(25), picture, options)]

    return parts


@pytest.mark.parametrize(
    "parts",
    [
        unlike(EncodeOptions(preset="ultrafast")),
        unlike(FAST, replace(PICTURE, width=64)),
        lambda frames: [],
    ],
    ids=["other preset", "other size", "none"],
)
def test_what_does_not_fit_together_is_refused(
    parts: Callable[[Frames], list[Frames]], frames: Frames, track: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    with pytest.raises(StageFailed) as caught:
        stitch(parts(frames), track, out, PICTURE, Fraction(25))
    assert caught.value.stage is Stage.POSTPROCESSING
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_of_pieces_leaves_no_file(
    frames: Frames, track: Path, tmp_path: Path
) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield piece(frames[:9], Fraction(25))
        raise StageFailed("the second piece never came")

    with pytest.raises(StageFailed, match="never came"):
        stitch(broken(), track, tmp_path / "out.mp4", PICTURE, Fraction(25))
    assert list(tmp_path.iterdir()) == []


def test_only_one_piece_is_held_at_a_time(frames: Frames, track: Path, tmp_path: Path) -> None:
    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    most = 0

    def counted() -> Iterator[NDArray[np.uint8]]:
        nonlocal most
        for part in pieces(frames, Fraction(25), 6):
            copy = part.copy()
            alive.append(weakref.ref(copy))
            yield copy
            del copy, part
            most = max(most, sum(ref() is not None for ref in alive[1:]))

    stitch(counted(), track, tmp_path / "out.mp4", PICTURE, Fraction(25))
    assert most <= 1


def test_a_frame_of_the_wrong_size_is_our_own_mistake(frames: Frames) -> None:
    with PieceEncoder(PICTURE, Fraction(25), FAST) as encoder:
        encoder.add(frames[0])
        with pytest.raises(ValueError, match="for a picture of"):
            encoder.add(frames[0, :-2])
        encoder.finish()


def test_an_abandoned_encoder_closes_quietly(frames: Frames) -> None:
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        PieceEncoder(PICTURE, Fraction(25), FAST) as encoder,
    ):
        encoder.add(frames[0])
        raise RuntimeError("on purpose")
