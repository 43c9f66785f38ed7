"""Streams in a folder: what their playlists say, which files they give out, how long they stay."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import pytest

from serve_app.streams.streams import Stream, Streams

FPS = Fraction(30000, 1001)
LONGEST_S = 60 / FPS


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def streams(tmp_path: Path, clock: Clock) -> Streams:
    return Streams(tmp_path, keep_s=60.0, max_bytes=100.0, clock=clock)


def begun(streams: Streams, job_id: str, number: int = 1, *sizes: int) -> Stream:
    """Begin a stream with fragments of these sizes."""
    attempt_id = f"{job_id}{number}".encode().hex().zfill(32)
    stream = streams.begin(job_id, number, attempt_id, FPS, LONGEST_S)
    for size in sizes:
        stream.put(b"x" * size, 30)
    return stream


def test_a_playlist_only_grows_until_it_ends(streams):
    stream = begun(streams, "a", 3)
    stream.put_init(b"init")
    seen = []
    for frames in (60, 60, 7):
        stream.put(b"x", frames)
        seen.append(stream.playlist("stream/3/", "?k=1"))
    streams.end(stream)
    seen.append(stream.playlist("stream/3/", "?k=1"))
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))
    assert seen[-1] == seen[-2] + "#EXT-X-ENDLIST\n"
    lines = seen[-1].splitlines()
    assert lines[0] == "#EXTM3U" and "#EXT-X-PLAYLIST-TYPE:EVENT" in lines
    assert '#EXT-X-MAP:URI="stream/3/init.mp4?k=1"' in lines
    # No fragment may be longer than that, and the number may not change.
    assert "#EXT-X-TARGETDURATION:3" in lines
    assert lines[-7:-1] == [
        "#EXTINF:2.002000,", "stream/3/0.m4s?k=1",
        "#EXTINF:2.002000,", "stream/3/1.m4s?k=1",
        "#EXTINF:0.233567,", "stream/3/2.m4s?k=1",
    ]  # fmt: skip


def test_a_stream_gives_out_only_what_it_has(streams):
    stream = begun(streams, "a")
    stream.put_init(b"init")
    (stream.folder / "sound.m4a").write_bytes(b"sound")
    assert streams.find("a", 1) is None and stream.file("init.mp4") is None
    stream.put(b"first", 30)
    assert streams.find("a", 1) is stream and streams.has("a", 1)
    assert stream.file("0.m4s").read_bytes() == b"first"
    assert stream.file("init.mp4").read_bytes() == b"init"
    for name in ("1.m4s", "00.m4s", "-0.m4s", "sound.m4a", "0", "", "..", "../0.m4s", "٠.m4s"):
        assert stream.file(name) is None, name


def test_another_attempt_has_a_stream_of_its_own(streams):
    first = begun(streams, "a", 1, 10)
    second = begun(streams, "a", 2, 10)
    assert streams.find("a", 1) is None and streams.find("a", 2) is second
    assert not first.folder.exists()
    streams.end(first)  # its attempt may end later
    assert streams.find("a", 2) is second


def test_a_stream_without_anything_to_play_does_not_stay(streams):
    stream = begun(streams, "a")
    streams.end(stream)
    assert not stream.folder.exists()


def test_streams_that_nobody_watches_are_removed(streams, clock):
    ended, watched, running = (begun(streams, name, 1, 10) for name in ("a", "b", "c"))
    streams.end(ended)
    streams.end(watched)
    clock.now += 50
    assert streams.find("b", 1) is watched
    clock.now += 20
    streams.sweep()
    assert not ended.folder.exists() and streams.find("a", 1) is None
    assert watched.folder.exists() and running.folder.exists()


def test_the_least_recently_watched_go_when_all_are_too_large(streams, clock):
    made = {}
    for name in ("a", "b", "c"):
        made[name] = begun(streams, name, 1, 40)
        streams.end(made[name])
        clock.now += 1
    streams.find("a", 1)
    streams.sweep()
    assert [name for name in made if streams.has(name, 1)] == ["a", "c"]


def test_a_stream_that_is_being_made_stays_however_large(streams):
    stream = begun(streams, "a", 1, 500)
    streams.sweep()
    assert streams.find("a", 1) is stream
    streams.end(stream)
    streams.sweep()
    assert streams.find("a", 1) is None


def test_what_an_earlier_process_left_is_removed(streams, tmp_path):
    begun(streams, "a", 1, 10)
    Streams(tmp_path, 60.0, 100.0).clear()
    assert list(tmp_path.iterdir()) == []
