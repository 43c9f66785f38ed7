"""Jobs that are watched while they are made, by ffmpeg and by hls.js in a browser.

The Generator is stopped as soon as something can be played, so that a player certainly plays while
the rest is not made yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from tests.browser import chromium_path, open_chromium
from tests.playing import frame_sums, link_to, played
from tests.serve.running import RunningApp
from tests.waiting import until

HLS_JS = Path(__file__).parents[2] / "serve_app/studio/assets/vendor/hls.light.min.mjs"
# Chromium guesses the colours of a video that does not name them, and of a stream in another way.
BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
FRAMES = 400  # 16 s at 25 frames a second
ENDLIST = "#EXT-X-ENDLIST\n"
PLAYER = """<!doctype html><video id="stream" muted></video><video id="whole" muted></video>
<script type="module">
  import Hls from "./hls.mjs";
  window.faults = [];
  window.play = (url) => new Promise((resolve, reject) => {
    const video = document.getElementById("stream");
    const player = new Hls({ enableWorker: false });
    player.on(Hls.Events.ERROR, (_, data) => {
      if (data.fatal) reject(data.details); else window.faults.push(data.details);
    });
    // It plays from its first picture on. A player that is late would show a later one first.
    video.requestVideoFrameCallback((_, frame) => {
      video.play();
      resolve(frame.mediaTime);
    });
    player.loadSource(url);
    player.attachMedia(video);
  });
  window.play_to_end = () => new Promise((resolve) => {
    const video = document.getElementById("stream");
    Object.assign(video, { onended: () => resolve(video.currentTime), playbackRate: 4 });
    if (video.ended) video.onended();
  });
  window.open_whole = (url) => new Promise((resolve, reject) => {
    const video = document.getElementById("whole");
    Object.assign(video, { oncanplay: resolve, onerror: reject, src: url });
  });
  window.picture_at = async (name, time) => {
    const video = document.getElementById(name);
    video.pause();
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    const context = canvas.getContext("2d");
    await new Promise((resolve) => {
      const look = (_, frame) => {
        context.drawImage(video, 0, 0);
        if (frame.mediaTime <= time && time < frame.mediaTime + 1 / 25) resolve();
        else video.requestVideoFrameCallback(look);
      };
      video.requestVideoFrameCallback(look);
      video.currentTime = time;
    });
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    return [canvas.width, canvas.height, ...digest];
  };
  window.isReady = true;
</script>"""


@pytest.fixture
def job(app, clip, speech):
    """A job of `FRAMES` frames that has begun to be drawn, and draws nothing more at the moment."""
    video = clip(frames=60, ffmpeg_output=BT709)
    body = {"video_url": video.as_uri(), "audio_url": speech(16.0).as_uri()}
    job_id = app.client.post("/v1/avatar/jobs", json=body).json()["id"]
    link = link_to(app, job_id)
    with app.drawing_stopped() as go_on:
        assert app.job(job_id)["status"] == "running"
        yield Watched(app, job_id, link, go_on)
        go_on()
        app.client.delete(f"/v1/avatar/jobs/{job_id}")
        app.wait_for(job_id, "succeeded", "cancelled")


class Watched:
    """A job with a stream that grows."""

    def __init__(self, app: RunningApp, job_id: str, link: str, go_on: Any) -> None:
        self.app, self.id, self.link, self.go_on = app, job_id, link, go_on

    def playlist(self) -> str:
        answer = self.app.client.get(self.link).raise_for_status()
        return answer.text

    def finished(self) -> dict[str, Any]:
        """Let the rest be drawn, and return the job when it has succeeded."""
        self.go_on()
        return self.app.wait_for(self.id, "succeeded")


def test_ffmpeg_plays_a_job_while_it_is_made(job, tmp_path):
    early = job.playlist()
    with frame_sums(job.link) as shown:
        first = [next(shown) for _ in range(10)]
        assert job.app.job(job.id)["status"] == "running" and ENDLIST not in early
        done = job.finished()
        seen = [*first, *shown]
    whole = job.app.output(done, tmp_path)
    assert seen == played(str(whole))  # the same pictures at the same times
    assert len(seen) == FRAMES
    late = job.playlist()
    assert late.startswith(early) and late.endswith(ENDLIST) and late.count(ENDLIST) == 1
    allowed, other = "https://app.example", "https://other.example"  # see conftest.py
    assert read_by_a_page_of(allowed, job.link, late) == {(200, allowed)}
    assert read_by_a_page_of(other, job.link, late) == {(200, None)}


def read_by_a_page_of(origin: str, link: str, playlist: str) -> set[tuple[int, str | None]]:
    """Return the status of each address of a stream, and which pages may read the answer."""
    parts = [line for line in playlist.splitlines() if not line.startswith("#")]
    found = set()
    for uri in (link, *(urljoin(link, part) for part in parts)):
        answer = httpx.get(uri, headers={"Origin": origin}, trust_env=False)
        found.add((answer.status_code, answer.headers.get("Access-Control-Allow-Origin")))
    return found


def test_a_cancelled_job_ends_its_stream_with_what_is_there(job, tmp_path):
    early = job.playlist()
    job.app.client.delete(f"/v1/avatar/jobs/{job.id}").raise_for_status()
    assert job.app.wait_for(job.id, "cancelled")["stream_url"] is not None
    late = until(
        lambda: text if (text := job.playlist()).endswith(ENDLIST) else None,
        "the stream has not ended",
    )
    assert late.startswith(early)
    n_shown = len(played(job.link))
    assert 0 < n_shown < FRAMES
    assert n_shown == round(25 * sum(map(float, lengths(late))))


def lengths(playlist: str) -> list[str]:
    lines = playlist.splitlines()
    return [line.strip("#EXTINF:,") for line in lines if line.startswith("#EXTINF:")]


@pytest.fixture
def player(app):
    """A page with hls.js. It is there before a job draws nothing more, which a stage may not for
    long.
    """
    base = str(app.client.base_url)
    with open_chromium() as browser:
        page = browser.new_page()
        page.route("**/player", lambda route: route.fulfill(body=PLAYER, content_type="text/html"))
        script = {"body": HLS_JS.read_bytes(), "content_type": "text/javascript"}
        page.route("**/hls.mjs", lambda route: route.fulfill(**script))
        page.goto(f"{base}/player")
        page.wait_for_function("window.isReady")
        yield page


@pytest.mark.slow
@pytest.mark.skipif(chromium_path() is None, reason="needs Chromium")
def test_a_browser_plays_a_job_while_it_is_made(player, job):
    assert player.evaluate("url => window.play(url)", job.link) == 0
    assert job.app.job(job.id)["status"] == "running"
    done = job.finished()
    player.evaluate("url => window.open_whole(url)", done["output_url"])
    assert player.evaluate("window.play_to_end()") >= FRAMES / 25
    # In several fragments, also the first frame of one. In a file, Chromium shows the key frame
    # instead of the two frames before it, so those are left out.
    seen = []
    for frame in (1, 30, 50, 51, 123, 200, 271, 300, FRAMES - 1, 0):
        pictures = [
            player.evaluate("([name, at]) => window.picture_at(name, at)", [name, at_s(frame)])
            for name in ("stream", "whole")
        ]
        assert pictures[0] == pictures[1], frame
        seen.append(tuple(pictures[0]))
    assert len(set(seen)) == len(seen)
    # It may have shown all that there was, and waited for more.
    assert set(player.evaluate("window.faults")) <= {"bufferStalledError", "bufferNudgeOnStall"}


def at_s(frame: int) -> float:
    """Return a time at which a frame is shown."""
    return (frame + 0.5) / 25
