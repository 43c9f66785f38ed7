"""What a media file is, found out before anything is decoded, and refused in one sentence if need
be.

    probe_video: first bytes ─► demuxer ─► header (limits) ─► packet times ─► FrameIndex
    open_audio:  first bytes ─► demuxer ─► header (limits) ─► 16 kHz samples, AAC track

Frames are counted from the times of the packets, without decoding, where packets and frames agree
one to one; the rest is decoded once to be counted. A container that cannot be sought exactly
(MPEG-TS, FLV, …) has its packets copied into an MP4 beside it first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from musetalk_pipeline.artifacts import ColourTags, SourceVideo, SpeechAudio
from musetalk_pipeline.containers import HEAD_BYTES, MOV, Container, recognise
from musetalk_pipeline.decode import RGB_FORMATS
from musetalk_pipeline.errors import AudioTooShort, InvalidAudio, InvalidVideo, MediaTooLarge
from musetalk_pipeline.frame_index import FrameIndex, constant_rate_order, frame_times
from musetalk_pipeline.options import MediaLimits
from musetalk_pipeline.plan import SAMPLE_RATE
from musetalk_pipeline.sandbox import Child, ChildLimits, ffmpeg, ffprobe, local_input, run

HEADER_S = 60.0  # guess: a header takes 0.1 s; the rest is for a machine under load
MIN_SAMPLES = SAMPLE_RATE * 80 // 1000  # below 80 ms the reference dies (musetalk_reference Q9)
CUT_OFF_SHARE = 0.9  # see _refuse_if_cut_off
CUT_OFF_S = 1.0
AAC_RATES = (44_100, 48_000)
AUDIO_BLOCK_FRAMES = 1 << 16

# Codecs whose packets and frames agree one to one, each packet's time being its frame's.
INDEXED_CODECS = frozenset(
    "h264 hevc vp9 av1 mpeg4 mjpeg prores dnxhd ffv1 png qtrle huffyuv ffvhuff utvideo rawvideo "
    "mpeg2video mpeg1video v210".split()
)
VIDEO_CODECS = INDEXED_CODECS | frozenset(
    "vp8 h263 flv1 theora msmpeg4v2 msmpeg4v3 wmv1 wmv2 wmv3 vc1 dvvideo cinepak svq3 rpza "
    "h261 h263p vp6 vp6f magicyuv cfhd gif".split()
)
AUDIO_CODECS = frozenset(
    "aac mp3 mp2 mp1 opus vorbis flac alac ac3 eac3 amr_nb amr_wb wmav1 wmav2 wmapro speex "
    "adpcm_ms adpcm_ima_wav adpcm_ima_qt adpcm_swf gsm gsm_ms nellymoser qdm2 dts truehd".split()
)

Refusal = type[InvalidVideo] | type[InvalidAudio]


def probe_video(path: Path, limits: MediaLimits, out_dir: Path | None = None) -> SourceVideo:
    """Validate a video and count its frames; write its FrameIndex into `out_dir` (its own folder).

    Raises:
        InvalidVideo, MediaTooLarge: refused. Sending it again cannot help.
        DeadlineExceeded: reading it took too long.
    """
    container, digest, size = _admit(path, limits, InvalidVideo)
    header = _read_header(path, container, limits, InvalidVideo)
    stream = _choose_video(header)
    _check_video(stream, limits)
    out_dir = out_dir or path.parent
    fps = constant_rate(stream, limits)
    index, copy = _index_frames(path, container, header, stream, fps, limits, out_dir)
    index_path = out_dir / f"{path.name}.{digest[:12]}.frames"
    index.save(index_path)
    width, height = displayed_size(stream)
    return SourceVideo(
        path=path,
        sha256=digest,
        size_bytes=size,
        width=width,
        height=height,
        fps=fps,
        n_frames=len(index.shown),
        duration_s=float(len(index.shown) / fps),
        colour=_colour_of(stream),
        index_path=index_path,
        read_path=copy,
        demuxer=(MOV if copy else container).demuxer,
        stream=0 if copy else int(stream["index"]),
        pixel_format=stream["pix_fmt"],
    )


def open_audio(
    path: Path, out_dir: Path, limits: MediaLimits, bitrate_kbps: int = 128
) -> SpeechAudio:
    """Validate a sound file (or a video's sound) and write its two forms into `out_dir`.

    Both come from one decoding and hold the same samples from the first one on: gaps and offsets
    in the file's times are closed, as the reference's reader does.

    Raises:
        InvalidAudio, AudioTooShort, MediaTooLarge: refused. Sending it again cannot help.
        DeadlineExceeded: reading it took too long.
    """
    container, digest, size = _admit(path, limits, InvalidAudio)
    header = _read_header(path, container, limits, InvalidAudio)
    stream = _choose_audio(header)
    stem = f"{path.name}.{digest[:12]}"
    pcm_path, track_path = out_dir / f"{stem}.f32", out_dir / f"{stem}.m4a"
    with _temporary(pcm_path) as pcm, _temporary(track_path) as track:
        n_samples, found_s = _decode_audio(
            _audio_command(path, container, stream, track, bitrate_kbps), stream, pcm, limits
        )
        declared_s = _seconds(stream.get("duration")) or _seconds(header["format"].get("duration"))
        if container.declares_length and _is_cut_off(found_s, declared_s):
            raise InvalidAudio(
                f"The audio is cut off: its header announces {declared_s:.1f} s but only "
                f"{found_s:.1f} s are there. Send the whole file."
            )
        if n_samples == 0:
            raise InvalidAudio("The audio holds no samples that can be decoded.")
        if n_samples < MIN_SAMPLES:
            raise AudioTooShort(
                f"The audio is {n_samples * 1000 // SAMPLE_RATE} ms long; at least 80 ms are needed."
            )
    return SpeechAudio(
        pcm_path=pcm_path,
        track_path=track_path,
        sha256=digest,
        size_bytes=size,
        n_samples=n_samples,
        duration_s=n_samples / SAMPLE_RATE,
    )


def constant_rate(stream: dict[str, Any], limits: MediaLimits) -> Fraction:
    """Return the exact rate at which the reference counts the frames of `stream`.

    ffmpeg's `r_frame_rate`, or the average where that is a time base rather than a rate: above 210
    with an average below 70 (ffmpeg's `av_guess_frame_rate`), or above the limit.
    """
    base, average = _rate(stream.get("r_frame_rate")), _rate(stream.get("avg_frame_rate"))
    if average and (not base or (average < 70 and base > 210) or base > limits.max_fps):
        base = average
    if not base:
        raise InvalidVideo("The video does not say how many frames a second it has.")
    if base > limits.max_fps:
        raise MediaTooLarge(
            f"The video has {float(base):.0f} frames a second; at most {limits.max_fps:.0f} are "
            "accepted."
        )
    return base


def displayed_size(stream: dict[str, Any]) -> tuple[int, int]:
    """Return width and height in pixels with the rotation applied that players apply."""
    width, height = int(stream["width"]), int(stream["height"])
    turns = [side.get("rotation", 0) for side in stream.get("side_data_list", [])]
    is_upright = all(round(float(turn)) % 180 == 0 for turn in turns)
    is_lying = any(abs(abs(float(turn)) % 180 - 90) < 1 for turn in turns)
    return (height, width) if is_lying and not is_upright else (width, height)


def _admit(path: Path, limits: MediaLimits, refusal: Refusal) -> tuple[Container, str, int]:
    size = path.stat().st_size
    if size == 0:
        raise refusal("The file is empty (0 bytes).")
    if size > limits.max_bytes:
        raise MediaTooLarge(
            f"The file has {size / 1e6:.0f} MB; at most {limits.max_bytes / 1e6:.0f} MB are "
            "accepted."
        )
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        container = recognise(head)
        if container is None:
            raise refusal(_what_instead(head, "video" if refusal is InvalidVideo else "audio"))
        if size < limits.min_bytes and refusal is InvalidVideo:
            raise refusal(f"The file has only {size} bytes; that is too small for a video.")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return container, digest, size


def _what_instead(head: bytes, wanted: str) -> str:
    kinds: tuple[tuple[bool, str], ...] = (
        (b"#EXTM3U" in head[:64], "a playlist"),
        (head[:4] in (b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"Rar!", b"7z\xbc\xaf"), "an archive"),
        (head[:8] == b"\x89PNG\r\n\x1a\n" or head[:3] in (b"GIF", b"\xff\xd8\xff"), "an image"),
        (head[8:12] == b"WEBP" or head[:2] == b"BM", "an image"),
        (head[:5] == b"%PDF-", "a PDF document"),
        (head.lstrip()[:1] in (b"<", b"{", b"["), "a web page, an XML or a JSON document"),
        (b"\0" not in head[:512], "text"),
    )
    for is_so, name in kinds:
        if is_so:
            return f"The file is {name}, not {wanted}. Playlists, images and documents are refused."
    return f"The file is not {wanted} in a format that is known here (MP4, MOV, MKV, WAV, MP3, …)."


_FIELDS = (
    "format=nb_streams,start_time,duration"
    ":stream=index,codec_type,codec_name,width,height,pix_fmt,r_frame_rate,avg_frame_rate,time_base"
    ",start_pts,start_time,duration,nb_frames,sample_rate,channels,sample_aspect_ratio,color_range"
    ",color_space,color_primaries,color_transfer"
    ":stream_disposition=default,attached_pic,timed_thumbnails,still_image"
    ":stream_side_data=rotation"
)


def _read_header(
    path: Path, container: Container, limits: MediaLimits, refusal: Refusal
) -> dict[str, Any]:
    command = ffprobe("-show_entries", _FIELDS, "-of", "json")
    done = run([*command, *local_input(path, container.demuxer)], ChildLimits(HEADER_S))
    try:
        header: dict[str, Any] = json.loads(done.stdout or b"{}")
    except ValueError:
        header = {}
    if not header.get("streams"):
        raise refusal(f"The file cannot be read: {done.message or 'it holds nothing'}.")
    if len(header["streams"]) > limits.max_streams:
        raise MediaTooLarge(
            f"The file holds {len(header['streams'])} streams; at most {limits.max_streams} are "
            "accepted."
        )
    longest = max(
        (_seconds(part.get("duration")) for part in [header["format"], *header["streams"]]),
        default=0.0,
    )
    if longest > limits.max_duration_s:
        raise _too_long(longest, limits)
    return header


def _too_long(seconds: float, limits: MediaLimits) -> MediaTooLarge:
    return MediaTooLarge(
        f"The file lasts {seconds:.0f} s; at most {limits.max_duration_s:.0f} s are accepted."
    )


def _seconds(text: str | None) -> float:
    with contextlib.suppress(ValueError):
        return max(0.0, float(text or 0))
    return 0.0


def _rate(text: str | None) -> Fraction:
    with contextlib.suppress(ValueError, ZeroDivisionError):
        return max(Fraction(0), Fraction(text or 0))
    return Fraction(0)


def _choose_video(header: dict[str, Any]) -> dict[str, Any]:
    """Return the stream that ffmpeg itself would take: the default one, then the largest."""
    videos = [s for s in header["streams"] if s.get("codec_type") == "video"]
    moving = [s for s in videos if not _is_still(s)]
    if not moving:
        what = "only a cover picture" if videos else "no picture at all, only other streams"
        raise InvalidVideo(f"The file holds {what}. Send a video with a face in it.")

    def rank(stream: dict[str, Any]) -> int:
        is_default = stream.get("disposition", {}).get("default", 0)
        return int(stream.get("width", 0)) * int(stream.get("height", 0)) + 5_000_000 * is_default

    return max(moving, key=rank)


def _is_still(stream: dict[str, Any]) -> bool:
    flags = stream.get("disposition", {})
    return any(flags.get(name) for name in ("attached_pic", "timed_thumbnails", "still_image"))


def _check_video(stream: dict[str, Any], limits: MediaLimits) -> None:
    codec = stream.get("codec_name", "unknown")
    if codec not in VIDEO_CODECS:
        raise InvalidVideo(f"The video's codec ({codec}) is not accepted. H.264 in MP4 always is.")
    width, height = int(stream.get("width", 0)), int(stream.get("height", 0))
    if width > limits.max_side_px or height > limits.max_side_px:
        raise MediaTooLarge(
            f"The picture is {width}x{height}; at most {limits.max_side_px} pixels a side are "
            "accepted."
        )
    if width * height > limits.max_pixels:
        raise MediaTooLarge(
            f"The picture is {width}x{height}; at most {limits.max_pixels / 1e6:.1f} megapixels "
            "are accepted."
        )
    if width < 2 or height < 2 or stream.get("pix_fmt") is None:
        raise InvalidVideo("The video holds no picture that can be decoded.")


def _choose_audio(header: dict[str, Any]) -> dict[str, Any]:
    sounds = [s for s in header["streams"] if s.get("codec_type") == "audio"]
    if not sounds:
        raise InvalidAudio("The file holds no sound.")
    stream: dict[str, Any] = max(sounds, key=lambda s: s.get("disposition", {}).get("default", 0))
    codec = stream.get("codec_name", "unknown")
    if codec not in AUDIO_CODECS and not codec.startswith("pcm_"):
        raise InvalidAudio(f"The audio's codec ({codec}) is not accepted. WAV, MP3 and AAC are.")
    rate, channels = int(stream.get("sample_rate", 0)), int(stream.get("channels", 0))
    if not 1000 <= rate <= 384_000 or not 1 <= channels <= 16:
        raise InvalidAudio(
            f"The audio has {channels} channels at {rate} Hz; 1 to 16 at 1 to 384 kHz are accepted."
        )
    return stream


@dataclass(frozen=True, slots=True)
class _Times:
    """One entry per frame, in display order, in ticks. `keys`: where decoding can begin."""

    pts: list[int]
    durations: list[int]
    keys: list[int]
    is_reliable: bool


def _index_frames(
    path: Path,
    container: Container,
    header: dict[str, Any],
    stream: dict[str, Any],
    fps: Fraction,
    limits: MediaLimits,
    out_dir: Path,
) -> tuple[FrameIndex, Path | None]:
    number = int(stream["index"])
    base = Fraction(stream["time_base"])
    times = _packet_times(path, container, stream, limits)
    is_indexed = times.is_reliable and stream["codec_name"] in INDEXED_CODECS
    copy = None
    if not is_indexed:
        times = _frame_times(path, container, number, limits)
    if not times.pts:
        raise InvalidVideo("The video holds no frames.")
    if (times.pts[-1] - times.pts[0]) * base > limits.max_duration_s:
        raise _too_long(float((times.pts[-1] - times.pts[0]) * base), limits)
    start = Fraction(header["format"].get("start_time") or 0)
    pts = np.array(times.pts, np.int64)
    lengths = [round(d * base * fps) for d in times.durations]
    shown = constant_rate_order(
        frame_times(pts, start, base, fps), lengths, len(header["streams"]) == 1
    )
    if not shown:
        raise InvalidVideo("The video holds no frames.")
    keys = times.keys
    if is_indexed and not container.is_exact:
        copy, keys, pts, base = _copy_exactly(path, container, stream, times, limits, out_dir)
    index = FrameIndex(
        pts, np.array(shown, np.int32), np.array(keys if is_indexed else [], np.int64), base
    )
    return index, copy


def _packet_times(
    path: Path, container: Container, stream: dict[str, Any], limits: MediaLimits
) -> _Times:
    """Read the times of all packets. Reliable if each packet is one frame shown at its time."""
    entries: list[tuple[int, int]] = []
    keys: list[int] = []
    is_reliable, n_packets = True, 0
    with _entries(path, container, int(stream["index"]), "packet=pts,duration,flags", limits) as (
        rows,
        child_message,
    ):
        for row in rows:
            n_packets += 1
            is_key, is_discarded = "K" in row.get("flags", ""), "D" in row.get("flags", "")
            pts = _whole(row.get("pts"))
            if pts is None or (n_packets == 1 and not is_key):
                is_reliable = False
                continue
            if is_key:
                keys.append(pts)
            if not is_discarded:
                entries.append((pts, _whole(row.get("duration")) or 0))
    _refuse_if_cut_off(stream, n_packets, child_message())
    entries.sort()
    pts_list = [pts for pts, _ in entries]
    is_reliable &= len(set(pts_list)) == len(pts_list)
    is_reliable &= bool(keys) and (not pts_list or pts_list[0] >= min(keys))
    return _Times(pts_list, [d for _, d in entries], sorted(keys), is_reliable)


def _frame_times(path: Path, container: Container, number: int, limits: MediaLimits) -> _Times:
    """Decode everything once to learn the times of the frames, in the order they come out."""
    fields = "frame=best_effort_timestamp,pkt_duration,duration"
    pts: list[int] = []
    durations: list[int] = []
    with _entries(path, container, number, fields, limits) as (rows, _):
        for row in rows:
            duration = _whole(row.get("pkt_duration")) or _whole(row.get("duration")) or 0
            time = _whole(row.get("best_effort_timestamp"))
            if time is None:
                time = pts[-1] + (durations[-1] or 1) if pts else 0
            pts.append(time)
            durations.append(duration)
    return _Times(pts, durations, [], False)


@contextlib.contextmanager
def _entries(
    path: Path, container: Container, number: int, fields: str, limits: MediaLimits
) -> Iterator[tuple[Iterator[dict[str, str]], Callable[[], str]]]:
    """Yield ffprobe's rows, as many as the limits allow, and how to ask what it complained about.

    One line per packet or frame; a deadline that grows with the longest clip that is accepted.
    """
    command = ffprobe("-select_streams", str(number), "-show_entries", fields, "-of", "compact=p=0")
    most = int(limits.max_duration_s * limits.max_fps * 2) + 1000

    def rows(child: Child) -> Iterator[dict[str, str]]:
        for count, line in enumerate(child.lines()):
            if count >= most:
                raise MediaTooLarge("The video holds more frames than are accepted.")
            yield dict(
                item.split("=", 1)
                for item in line.decode("ascii", "replace").split("|")
                if "=" in item
            )

    seconds = HEADER_S + limits.max_duration_s
    with Child([*command, *local_input(path, container.demuxer)], ChildLimits(seconds)) as child:
        yield rows(child), lambda: child.message


def _whole(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _refuse_if_cut_off(stream: dict[str, Any], n_packets: int, message: str) -> None:
    """Refuse a file that ends before its own index does.

    MP4 and AVI say how many frames there are; Matroska's and MP4's readers complain when the file
    ends inside something. A length alone is no proof: sound may go on after the picture.
    """
    declared = _whole(stream.get("nb_frames")) or 0
    is_cut = n_packets < declared or "partial file" in message or "ended prematurely" in message
    if is_cut:
        found = f"{n_packets} of {declared} frames are there" if declared else "its end is missing"
        raise InvalidVideo(f"The video is cut off: {found}. Send the whole file.")


def _copy_exactly(
    path: Path,
    container: Container,
    stream: dict[str, Any],
    times: _Times,
    limits: MediaLimits,
    out_dir: Path,
) -> tuple[Path | None, list[int], NDArray[np.int64], Fraction]:
    """Copy the packets into an MP4, which can be sought exactly; frame by frame the same.

    Where the copy cannot be made or does not hold the same frames, return no copy and no key
    frames: decoding then always begins at the start.
    """
    copy = out_dir / f"{path.name}.seekable.mp4"
    nothing = (None, list[int](), np.array(times.pts, np.int64), Fraction(stream["time_base"]))
    with _temporary(copy) as temporary:
        command = ffmpeg(
            *local_input(path, container.demuxer),
            *("-map", f"0:{stream['index']}", "-c", "copy", "-copyts", "-f", "mp4"),
            f"file:{temporary.resolve()}",
        )
        limit = ChildLimits(HEADER_S + limits.max_duration_s, file_bytes=2 * limits.max_bytes)
        if run(command, limit).returncode != 0:
            return nothing
        header = _read_header(temporary, MOV, limits, InvalidVideo)["streams"][0]
        copied = _packet_times(temporary, MOV, header, limits)
        if not copied.is_reliable or len(copied.pts) != len(times.pts):
            return nothing
    return copy, copied.keys, np.array(copied.pts, np.int64), Fraction(header["time_base"])


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a temporary name; rename it to `path` at the end, or remove it on any error."""
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        if temporary.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _colour_of(stream: dict[str, Any]) -> ColourTags:
    """Return the colour tags of the frames that `read_frames` delivers.

    A full-range pixel format (yuvj…) counts as `pc` even without a tag. RGB becomes BT.709 of
    limited range on the way to YUV.
    """
    pixels = stream["pix_fmt"]
    if pixels.startswith(RGB_FORMATS):
        return ColourTags("bt709", "tv", "bt709", "bt709")
    light = "pc" if pixels.startswith("yuvj") else stream.get("color_range", "unknown")
    space = stream.get("color_space", "unknown")
    return ColourTags(
        space="unknown" if space in ("gbr", "reserved") else space,
        range=light,
        primaries=stream.get("color_primaries", "unknown"),
        transfer=stream.get("color_transfer", "unknown"),
    )


def _audio_command(
    path: Path, container: Container, stream: dict[str, Any], track: Path, bitrate_kbps: int
) -> list[str]:
    rate, channels = int(stream["sample_rate"]), int(stream["channels"])
    track_rate = rate if rate in AAC_RATES else AAC_RATES[-1]
    # Times are counted anew from the first sample in both outputs, so that they agree.
    chosen = ("-map", f"0:{stream['index']}", "-af", "asetpts=N/SR/TB", "-map_metadata", "-1")
    return ffmpeg(
        *local_input(path, container.demuxer),
        *chosen,
        *("-c:a", "pcm_f32le", "-ar", str(rate), "-ac", str(channels), "-f", "f32le", "pipe:1"),
        *chosen,
        *("-c:a", "aac", "-b:a", f"{bitrate_kbps}k", "-ar", str(track_rate)),
        *("-ac", str(min(2, channels)), "-f", "mp4", f"file:{track.resolve()}"),
    )


def _decode_audio(
    command: list[str], stream: dict[str, Any], pcm: Path, limits: MediaLimits
) -> tuple[int, float]:
    """Write the 16 kHz samples to `pcm`; return their number and the seconds that were decoded."""
    rate, channels = int(stream["sample_rate"]), int(stream["channels"])
    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    most = int(limits.max_duration_s * rate)
    n_read = n_written = 0
    block = bytearray(AUDIO_BLOCK_FRAMES * channels * 4)
    limit = ChildLimits(HEADER_S + limits.max_duration_s, file_bytes=limits.max_bytes)
    with Child(command, limit) as child, pcm.open("wb") as file:
        is_last = False
        while not is_last:
            got = child.read_into(memoryview(block))
            is_last = got < len(block)
            sound = np.frombuffer(block, np.float32, got // (4 * channels) * channels)
            n_read += len(sound) // channels
            if n_read > most:
                raise _too_long(n_read / rate, limits)
            mono = _mean_of_channels(sound.reshape(-1, channels))
            out = mono if rate == SAMPLE_RATE else resampler.resample_chunk(mono, last=is_last)
            # librosa: as many samples as ceil(n * ratio), cut or padded with zeros.
            whole = int(np.ceil(n_read * (SAMPLE_RATE / rate))) if is_last else n_written + len(out)
            file.write(out[: whole - n_written].tobytes())
            n_written = min(whole, n_written + len(out))
            if is_last:
                file.write(bytes(4 * (whole - n_written)))
                n_written = whole
        if child.wait() != 0 and n_read == 0:
            raise InvalidAudio(
                f"The audio cannot be decoded: {child.message or 'no reason given'}."
            )
    return n_written, n_read / rate


def _mean_of_channels(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, channels) to (n,). What is not a number becomes silence, what is endless becomes 1."""
    mono = np.ascontiguousarray(sound.T).mean(axis=0, dtype=np.float32)
    return np.nan_to_num(mono, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)


def _is_cut_off(found_s: float, declared_s: float) -> bool:
    """Whether so much is missing that it was not meant: over 10 % and over 1 s of what the header
    announces. Less is ordinary: encoders round, and estimates of a length are rough.
    """
    return found_s < CUT_OFF_SHARE * declared_s and declared_s - found_s > CUT_OFF_S
