"""The text of an HLS media playlist (RFC 8216) of type EVENT, which only ever grows at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

CONTENT_TYPE = "application/vnd.apple.mpegurl"
INIT_NAME, FRAGMENT_SUFFIX = "init.mp4", ".m4s"


def fragment_name(number: int) -> str:
    """Return the name of a fragment, counted from 0."""
    return f"{number}{FRAGMENT_SUFFIX}"


def playlist(
    durations_s: Sequence[Fraction], longest_s: Fraction, folder: str, query: str, *, is_over: bool
) -> str:
    """Return the playlist of a stream with these fragments.

    Args:
        longest_s: how long a fragment may be. It must not change while the stream grows.
        folder: what the addresses of the fragments begin with, relative to the playlist's.
        query: what they end with, from `?` on; it may be empty.
        is_over: whether no fragment will follow.
    """
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{max(1, math.ceil(longest_s))}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        # A player of a stream that grows would otherwise begin near its end.
        "#EXT-X-START:TIME-OFFSET=0,PRECISE=YES",
        f'#EXT-X-MAP:URI="{folder}{INIT_NAME}{query}"',
    ]
    for number, duration_s in enumerate(durations_s):
        lines.append(f"#EXTINF:{float(duration_s):.6f},")
        lines.append(f"{folder}{fragment_name(number)}{query}")
    if is_over:
        lines.append("#EXT-X-ENDLIST")
    return "\n".join(lines) + "\n"
