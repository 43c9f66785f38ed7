"""Every hostile input of tests/hostile at a running application, a good job after each.

What each of them is, and that nothing is left of it, is tested there; here it meets the real thing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from musetalk_pipeline.errors import DownloadFailed, InvalidAudio, InvalidVideo, MediaError
from musetalk_pipeline.options import MediaLimits
from tests.hostile.test_addresses import DISGUISED, MALFORMED, SPELLED
from tests.hostile.test_hostile_media import BAD_AUDIO, BAD_VIDEO, NOT_MEDIA
from tests.hostile.test_requests import BAD_BODIES, TAKEN_LENIENTLY
from tests.serve.conftest import LEFTOVER_GRACE_S
from tests.serve.running import RunningApp, running_app
from tests.waiting import until

AT_ONCE = 2  # jobs that run at a time


def refusals(url: str) -> tuple[str, ...]:
    """Return the codes of which one is the answer to an address."""
    if url.startswith("data:"):  # it contains a file, which is no video
        return ("invalid_file",)
    return ("source_refused", "invalid_request")


@dataclass(frozen=True)
class Hostile:
    """A request, and the codes that its answer may have."""

    name: str
    content: bytes
    codes: tuple[str, ...]


@pytest.fixture(scope="module")
def app(tmp_path_factory, private_temp) -> Iterator[RunningApp]:
    """As an operator has it: no private host is open, inputs are small."""
    inputs = {
        "allowed_folders": [str(private_temp)],
        "max_duration_s": 20.0,
        "max_fps": 60.0,
        "max_streams": 4,
    }
    with running_app(tmp_path_factory.mktemp("hostile"), inputs=inputs) as app:
        yield app


@pytest.fixture(scope="module")
def inputs(clip, speech, tmp_path_factory) -> list[Hostile]:
    folder = tmp_path_factory.mktemp("inputs")
    video, audio = clip(frames=4).as_uri(), speech(0.2).as_uri()
    numbers = itertools.count()

    def request(video_url: str, audio_url: str) -> bytes:
        body = {"video_url": video_url, "audio_url": audio_url}
        return json.dumps({"musetalk_job_id": f"hostile-{next(numbers)}", **body}).encode()

    def file(data: bytes) -> str:
        path = folder / f"{next(numbers)}"
        path.write_bytes(data)
        return "file://" + quote(str(path))

    found = [
        # An address without a character, or with half of one, does not pass the request's check.
        Hostile(f"url {url!a}", request(url, audio), refusals(url))
        for url in SPELLED + DISGUISED + MALFORMED
    ]
    files = [("video", n, data, InvalidVideo) for n, data in NOT_MEDIA.items()]
    files += [("audio", n, data, InvalidAudio) for n, data in NOT_MEDIA.items()]
    files += [("video", n, make(), error) for n, (make, error) in BAD_VIDEO.items()]
    files += [("audio", n, make(), error) for n, (make, error) in BAD_AUDIO.items()]
    for kind, name, data, error in files:
        # MediaError: refused for its form or for its size, and either is right.
        codes = ("invalid_audio", "media_too_large") if error is MediaError else (error.code,)
        if len(data) < MediaLimits().min_bytes:
            codes += (DownloadFailed.code,)  # cut off, as far as a download can tell
        urls = (file(data), audio) if kind == "video" else (video, file(data))
        found.append(Hostile(f"{kind} {name}", request(*urls), codes))
    for name, data in BAD_BODIES.items():
        # What `/generate` takes with a warning ends at the body's address, where nobody answers.
        taken = name in TAKEN_LENIENTLY
        codes = (DownloadFailed.code,) if taken else ("invalid_request",)
        # Ids of their own: two that run at a time must not be one job.
        own = data.replace(b"job-123", f"body-{next(numbers)}".encode())
        found.append(Hostile(f"body {name}", own, codes))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_every_hostile_input_the_next_good_job_is_done(app, inputs, clip, speech):
    assert len(inputs) >= 200
    good = {"video_url": clip(frames=4).as_uri(), "audio_url": speech(0.2).as_uri()}

    def meet(number: int) -> str | None:
        hostile = inputs[number]
        headers = {"Content-Type": "application/json"}
        answer = app.client.post("/generate", content=hostile.content, headers=headers)
        body = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        if answer.status_code != 422 or body.get("code") not in hostile.codes:
            return f"{hostile.name}: {answer.status_code} {answer.text[:300]}"
        if body["retryable"] or "stack_trace" in body or "/etc/" in body["error_message"]:
            return f"{hostile.name}: {body}"
        done = app.generate(musetalk_job_id=f"good-{number}", **good)
        if done.status_code != 200:
            return f"a good job after {hostile.name}: {done.status_code} {done.text[:300]}"
        return None

    with ThreadPoolExecutor(AT_ONCE) as lanes:
        wrong = [fault for fault in lanes.map(meet, range(len(inputs))) if fault]
    assert not wrong, "\n".join(wrong)
    until(
        lambda: not (app.scratch or app.media_tools()),
        lambda: f"{app.scratch} and {app.media_tools()} have not gone",
        LEFTOVER_GRACE_S,
    )
    outputs = {path.name for path in Path(app.folder / "results").glob("*.mp4")}
    assert outputs == {f"good-{number}.mp4" for number in range(len(inputs))}
