"""What a video is and which frames it has, determined before anything is decoded.

A video that cannot be used is refused with one sentence. A still picture becomes a video of one
frame first (still.py).

    first bytes ─► demuxer ─► header (limits) ─► times of the packets ─► FrameIndex

If packets and frames agree one to one, frames are counted from the times of the packets, without
decoding. Other files are decoded once to be counted. A container that cannot be sought exactly
(MPEG-TS, FLV, …) has its packets copied into an MP4 next to the index first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from musetalk_pipeline.artifacts import ColourTags, SourceVideo
from musetalk_pipeline.errors import InvalidVideo, MediaTooLarge, at_fault
from musetalk_pipeline.files import replacing
from musetalk_pipeline.media.containers import MOV, Container
from musetalk_pipeline.media.decode import RGB_FORMATS
from musetalk_pipeline.media.frame_index import FrameIndex, constant_rate_order, frame_times
from musetalk_pipeline.media.media_file import (
    HEADER_S,
    PACKET_FIELDS,
    WHOLE_FILE,
    MediaFile,
    admit,
    read_header,
    too_long,
)
from musetalk_pipeline.media.sandbox import Child, ChildLimits, ffmpeg, ffprobe, run
from musetalk_pipeline.media.speech_audio import open_audio
from musetalk_pipeline.media.still import make_video_of_still, picture_in
from musetalk_pipeline.media.video_stream import (
    INDEXED_CODECS,
    check_video,
    choose_video,
    constant_rate,
    displayed_size,
)
from musetalk_pipeline.options import MediaLimits

__all__ = ["open_audio", "probe_video"]


Row = Mapping[str, Any]  # ffprobe's fields of a packet or a frame


@at_fault("video")
def probe_video(
    path: Path,
    limits: MediaLimits,
    out_dir: Path | None = None,
    *,
    sha256: str | None = None,
) -> SourceVideo:
    """Validate a video and count its frames; write its FrameIndex into `out_dir` (its own folder).

    `sha256`: the file's digest in hex, if it has been computed; otherwise it is computed here.

    Raises:
        InvalidVideo, MediaTooLarge: refused. Sending it again cannot help.
        DeadlineExceeded: reading it took too long.
    """
    out_dir = out_dir or path.parent
    if (picture := picture_in(path)) is not None and path.stat().st_size <= limits.max_bytes:
        return _probe_still(path, picture, limits, out_dir, sha256)
    media = admit(path, limits, InvalidVideo, sha256, with_packets=True)
    stream = choose_video(media)
    check_video(stream, limits)
    fps = constant_rate(stream, limits)
    index, copy = _index_frames(media, stream, fps, limits, out_dir)
    index_path = out_dir / f"{path.name}.{media.sha256[:12]}.frames"
    with replacing(index_path) as temporary:
        index.save(temporary)
    width, height = displayed_size(stream)
    return SourceVideo(
        path=path,
        sha256=media.sha256,
        size_bytes=media.size_bytes,
        width=width,
        height=height,
        fps=fps,
        n_frames=len(index.shown),
        duration_s=float(len(index.shown) / fps),
        colour=_colour_of(stream),
        index_path=index_path,
        read_path=copy,
        demuxer=(MOV if copy else media.container).demuxer,
        stream=0 if copy else int(stream["index"]),
        pixel_format=stream["pix_fmt"],
    )


def _probe_still(
    path: Path, picture: Container, limits: MediaLimits, out_dir: Path, sha256: str | None
) -> SourceVideo:
    """Make a video of one frame of a picture, and probe that."""
    with path.open("rb") as file:
        digest = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
    video = out_dir / f"{path.name}.{digest[:12]}.mkv"
    make_video_of_still(path, picture, video)
    # A picture of few colours is small, and is whole all the same.
    found = probe_video(video, replace(limits, min_bytes=0), out_dir, sha256=digest)
    size_bytes = path.stat().st_size
    return replace(found, path=path, size_bytes=size_bytes, read_path=found.read_path or video)


def _colour_of(stream: Mapping[str, Any]) -> ColourTags:
    """Return the colour tags of the frames that `read_frames` delivers.

    A full-range pixel format (yuvj…) counts as `pc` even without a tag. RGB becomes BT.709 of
    limited range on the way to YUV.
    """
    pixels = stream["pix_fmt"]
    if pixels.startswith(RGB_FORMATS):
        return ColourTags("bt709", "tv", "bt709", "bt709")
    space = stream.get("color_space", "unknown")
    return ColourTags(
        space="unknown" if space in ("gbr", "reserved") else space,
        range="pc" if pixels.startswith("yuvj") else stream.get("color_range", "unknown"),
        primaries=stream.get("color_primaries", "unknown"),
        transfer=stream.get("color_transfer", "unknown"),
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """The times of all frames, in display order, in ticks.

    `keys`: where decoding can begin, empty if only at the start. `complaint`: ffprobe's, empty if
    it had none.
    """

    pts: list[int]
    durations: list[int]
    keys: list[int]
    complaint: str


def _index_frames(
    media: MediaFile, stream: dict[str, Any], fps: Fraction, limits: MediaLimits, out_dir: Path
) -> tuple[FrameIndex, Path | None]:
    """Return the index, and the copy that it describes if the file itself cannot be sought."""
    times = _times_from_packets(media, stream, limits) or _times_from_frames(media, stream, limits)
    base = Fraction(stream["time_base"])
    _check_times(times, base, limits)
    start = media.start_s
    if media.container.starts_with_picture:
        start = Fraction(stream.get("start_time") or 0)
    shown = constant_rate_order(
        frame_times(times.pts, start, base, fps),
        [round(duration * base * fps) for duration in times.durations],
        is_only_stream=len(media.streams) == 1,
    )
    if not shown:
        raise _no_frames(times)
    copy = None
    if times.keys and not media.container.is_exact:
        copied = _copy_exactly(media, stream, limits, out_dir)
        if copied is not None and len(copied[1].pts) == len(times.pts):
            copy, times, base = copied
        else:
            times = replace(times, keys=[])
    return FrameIndex.of(times.pts, shown, times.keys, base), copy


def _check_times(times: _Times, base: Fraction, limits: MediaLimits) -> None:
    if not times.pts:
        raise _no_frames(times)
    length_s = (max(times.pts) - min(times.pts)) * base
    if length_s > limits.max_duration_s:
        raise too_long("The video file", float(length_s), limits)


def _no_frames(times: _Times) -> InvalidVideo:
    return InvalidVideo("The video holds no frames.", **_said(times.complaint))


def _said(complaint: str) -> dict[str, Any]:
    """Return ffprobe's complaint as a detail of an error, if it had one."""
    return {"ffprobe": complaint} if complaint else {}


def _times_from_packets(
    media: MediaFile, stream: dict[str, Any], limits: MediaLimits
) -> _Times | None:
    """Read the times of all packets; None if they do not determine which frames are shown when.

    They do if each packet has a time of its own and the first one is a key frame that is shown
    before all others.
    """
    frames: list[tuple[int, int]] = []
    keys: list[int] = []
    is_reliable, n_packets = stream["codec_name"] in INDEXED_CODECS, 0
    complaints: list[str] = []
    for n_packets, row in enumerate(_packets(media, stream, limits, complaints), 1):
        flags, time = row.get("flags", ""), _whole(row.get("pts"))
        if time is None or (n_packets == 1 and "K" not in flags):
            is_reliable = False
            continue
        if "K" in flags:
            keys.append(time)
        if "D" not in flags:  # discarded: before an edit list's start
            frames.append((time, _whole(row.get("duration")) or 0))
    [complaint] = complaints
    _refuse_if_cut_off(media, stream, n_packets, complaint)
    frames.sort()
    pts = [time for time, _ in frames]
    is_reliable &= bool(keys) and len(set(pts)) == len(pts) and min(pts, default=0) >= min(keys)
    if not is_reliable:
        return None
    return _Times(pts, [duration for _, duration in frames], sorted(keys), complaint)


def _packets(
    media: MediaFile, stream: dict[str, Any], limits: MediaLimits, complaints: list[str]
) -> Iterator[Row]:
    """Yield ffprobe's fields of each packet of a stream, and add its complaint at the end."""
    if media.packets is not None:
        mine = (row for row in media.packets if row.get("stream_index") == stream["index"])
        yield from _bounded(mine, limits)
        complaints.append(media.complaint)
        return
    with _probing(media, stream, PACKET_FIELDS, limits) as child:
        yield from _bounded(_rows(child, b"packet|"), limits)
        complaints.append(child.message)


def _times_from_frames(media: MediaFile, stream: dict[str, Any], limits: MediaLimits) -> _Times:
    """Decode everything once to learn the times of the frames, in the order they come out."""
    fields = "frame=best_effort_timestamp,pkt_duration,duration"
    pts: list[int] = []
    durations: list[int] = []
    with _probing(media, stream, fields, limits) as child:
        for row in _bounded(_rows(child, b"frame|"), limits):
            time = _whole(row.get("best_effort_timestamp"))
            if time is None:
                time = pts[-1] + (durations[-1] or 1) if pts else 0
            pts.append(time)
            durations.append(_whole(row.get("pkt_duration")) or _whole(row.get("duration")) or 0)
        complaint = child.message
    return _Times(pts, durations, [], complaint)


def _probing(
    media: MediaFile, stream: Mapping[str, Any], fields: str, limits: MediaLimits
) -> Child:
    """Start an ffprobe that prints one row of `fields` per packet or frame."""
    choice = ("-select_streams", str(stream["index"]), "-show_entries", fields, "-of", "compact")
    limit = ChildLimits(HEADER_S + limits.max_duration_s)  # as long as the longest clip lasts
    return Child(ffprobe(*choice, *media.input()), limit)


def _rows(child: Child, section: bytes) -> Iterator[dict[str, str]]:
    """Yield the rows of one section."""
    for line in child.lines():
        if line.startswith(section):  # side data has rows of its own
            items = line.decode("ascii", "replace").split("|")
            yield dict(item.split("=", 1) for item in items if "=" in item)


def _bounded(rows: Iterable[Row], limits: MediaLimits) -> Iterator[Row]:
    """Pass rows on, as many as the limits allow."""
    most = int(limits.max_duration_s * limits.max_fps * 2) + 1000
    for number, row in enumerate(rows):
        if number >= most:
            raise MediaTooLarge("The video holds more frames than are accepted.", max_frames=most)
        yield row


def _whole(text: str | int | None) -> int | None:
    try:
        return int("" if text is None else text)
    except ValueError:
        return None


def _refuse_if_cut_off(
    media: MediaFile, stream: Mapping[str, Any], n_packets: int, message: str
) -> None:
    """Refuse a file that ends before its own index does.

    The readers of Matroska and MP4 complain if the file ends inside something, and AVI declares how
    many frames there are (as MP4 does, but there an edit list may leave some out). A length alone
    proves nothing, because sound may continue after the picture.
    """
    declared = 0 if media.container is MOV else _whole(stream.get("nb_frames")) or 0
    if n_packets < declared or "partial file" in message or "ended prematurely" in message:
        raise InvalidVideo(
            "The video is cut off: its end is missing. Send the whole file.",
            hint=WHOLE_FILE,
            packets=n_packets,
            **_said(message),
        )


def _copy_exactly(
    media: MediaFile, stream: dict[str, Any], limits: MediaLimits, out_dir: Path
) -> tuple[Path, _Times, Fraction] | None:
    """Copy the packets into an MP4, which can be sought exactly; None if it cannot hold them."""
    copy = out_dir / f"{media.path.name}.{media.sha256[:12]}.mp4"
    with replacing(copy) as temporary:
        command = ffmpeg(
            *media.input(),
            *("-map", f"0:{stream['index']}", "-c", "copy", "-copyts", "-f", "mp4"),
            f"file:{temporary.resolve()}",
        )
        limit = ChildLimits(HEADER_S + limits.max_duration_s, file_bytes=2 * limits.max_bytes)
        if run(command, limit).returncode != 0:
            temporary.unlink(missing_ok=True)
            return None
        streams = read_header(temporary, MOV, InvalidVideo).streams
        copied = replace(media, path=temporary, container=MOV, packets=None)
        times = _times_from_packets(copied, streams[0], limits)
        if times is None:
            temporary.unlink()
            return None
    return copy, times, Fraction(streams[0]["time_base"])
