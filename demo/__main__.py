"""`make run`: one job through the real application, from start to a video that can be watched.

1. The input is found or made: the user's files, or the demo's own.
2. The launcher is started as a child, with a Ray session and a registry of its own.
3. The demo waits until `GET /hc` answers.
4. `POST /generate` does the job, while `GET /v1/avatar/jobs/{id}/events` is drawn as a bar.
5. The result is fetched into `out/`, and the contact sheet is drawn.
6. What was started is stopped, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from rich.console import Console

from demo.application import ROOT, START_TIMEOUT_S, Application, DemoFailed, application, say
from demo.media import SpeechMissing, demo_speech, demo_video
from musetalk_pipeline.contact_sheet import write_contact_sheet
from musetalk_pipeline.files import replacing
from musetalk_pipeline.progress_bar import ProgressBar
from musetalk_pipeline.receipts.receipt import receipt_line

OUT = ROOT / "out"
CACHE = ROOT / ".cache" / "demo"
SPEECH_ROOTS = (Path("/"), ROOT / ".cache" / "speech")

JOB_TIMEOUT_S = 3600.0  # the longest input that the default configuration accepts
POLL_S = 0.25
LOG_LINES = 30


@dataclass(frozen=True, slots=True)
class Media:
    """One input: the address that the application gets, and the local file if there is one."""

    url: str
    path: Path | None


def media_of(argument: str) -> Media:
    """Read a path or an address as the user gave it.

    Raises:
        DemoFailed: the file does not exist.
    """
    if urlsplit(argument).scheme in {"http", "https"}:
        return Media(argument, None)
    path = Path(argument.removeprefix("file://")).expanduser().resolve()
    if not path.is_file():
        raise DemoFailed(f"there is no file {path}")
    return Media(path.as_uri(), path)


def choose_media(video: str | None, audio: str | None) -> tuple[Media, Media]:
    """Return the video and the audio of the job. What is not given is the demo's own."""
    try:
        return (
            media_of(video or str(demo_video(CACHE))),
            media_of(audio or str(demo_speech(CACHE, SPEECH_ROOTS))),
        )
    except SpeechMissing as missing:
        raise DemoFailed(str(missing)) from missing


# --- the application ------------------------------------------------------------------------------


def wait_until_ready(app: Application, client: httpx.Client) -> dict[str, Any]:
    """Wait for `GET /hc` and return what `GET /health` says.

    Raises:
        DemoFailed: the application ended, or it was not ready in time.
    """
    start = time.monotonic()
    say("starting the application")
    with Console(stderr=True).status("waiting for it to be ready"):  # only drawn on a terminal
        while time.monotonic() - start < START_TIMEOUT_S:
            if app.process.poll() is not None:
                raise DemoFailed(f"the application did not start:\n{tail(app.log)}")
            try:
                if client.get("/hc", timeout=5.0).status_code == 200:
                    health: dict[str, Any] = client.get("/health", timeout=5.0).json()
                    say(f"ready after {time.monotonic() - start:.1f} s at {app.base_url}")
                    return health
            except httpx.TransportError:
                pass  # nothing listens yet
            time.sleep(POLL_S)
    raise DemoFailed(f"not ready after {START_TIMEOUT_S:.0f} s:\n{tail(app.log)}")


def tail(log: Path) -> str:
    """Return the end of the application's log."""
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(["", *lines, "", f"The whole log: {log}"])


# --- the job --------------------------------------------------------------------------------------


class Request(threading.Thread):
    """`POST /generate`, which is answered when the job ends. The main thread draws the bar."""

    def __init__(self, client: httpx.Client, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._client, self._body = client, body
        self.answer: httpx.Response | None = None
        self.error: httpx.HTTPError | None = None

    def run(self) -> None:
        """Send the request, and keep the answer or the error."""
        try:
            self.answer = self._client.post("/generate", json=self._body, timeout=JOB_TIMEOUT_S)
        except httpx.HTTPError as error:
            self.error = error


def run_job(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """Do one job and return the answer of `POST /generate`.

    Raises:
        DemoFailed: the job failed; the message is the application's own.
    """
    request = Request(client, body)
    request.start()
    draw_progress(client, body["musetalk_job_id"], request)
    request.join(JOB_TIMEOUT_S)
    if request.answer is None:
        raise DemoFailed(f"the application did not answer: {request.error!r}")
    try:
        answer: dict[str, Any] = request.answer.json()
    except ValueError:
        text = f"{request.answer.status_code} {request.answer.text[:200]}"
        raise DemoFailed(f"the application answered {text}") from None
    if answer.get("status") != "success":
        message = answer.get("error_message", request.answer.text)
        raise DemoFailed(f"the job failed (stage {answer.get('stage', 'unknown')}): {message}")
    return answer


def draw_progress(client: httpx.Client, job_id: str, request: Request) -> None:
    """Draw the job's events as a bar until the job ends. What fails here does not end the job."""
    with ProgressBar("frames") as bar:
        bar.show("queued")
        while request.is_alive():
            try:
                for job in events(client, job_id):
                    progress = job["progress"]
                    total = progress["frames_total"] or None
                    bar.show(progress["phase"], progress["frames_done"], total)
            except httpx.HTTPError:
                pass  # the next turn tries again
            request.join(POLL_S)


def events(client: httpx.Client, job_id: str) -> Iterator[dict[str, Any]]:
    """Yield the job at each of its server-sent events, or nothing if it does not exist yet."""
    path = f"/v1/avatar/jobs/{quote(job_id, safe='')}/events"
    with client.stream("GET", path, timeout=JOB_TIMEOUT_S) as response:
        if response.status_code != 200:
            return
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def fetch(client: httpx.Client, url: str, path: Path) -> None:
    """Write the body of `url` to `path`, completely or not at all.

    Raises:
        DemoFailed: the answer is not 200.
    """
    with client.stream("GET", url, follow_redirects=True, timeout=60.0) as response:
        if response.status_code != 200:
            raise DemoFailed(f"{url} answered {response.status_code}")
        with replacing(path) as part, part.open("wb") as sink:
            for chunk in response.iter_bytes():
                sink.write(chunk)


# --- the command ----------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the Makefile's variables are the defaults."""
    parser = argparse.ArgumentParser(description="One lip-sync job through the application.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the result")
    for name, text in (
        ("video", "a file or an http(s) address (default: a portrait that sways)"),
        ("audio", "a file or an http(s) address (default: recorded speech)"),
        ("resolution", "720p, 640x360, source"),
        ("aspect-ratio", "9:16, 16:9, 1:1, source"),
        ("config", "what is started (default: serve_config.yaml)"),
    ):
        variable = name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", default=os.environ.get(variable) or None, help=text)
    return parser.parse_args()


def do_one_job(arguments: argparse.Namespace) -> None:
    """Run the six steps of the module's docstring."""
    video, audio = choose_media(arguments.video, arguments.audio)
    folders = sorted({media.path.parent for media in (video, audio) if media.path})
    job_id = time.strftime("demo-%Y%m%d-%H%M%S")
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    result, sheet = out / f"{job_id}.mp4", out / f"{job_id}.png"
    config = ROOT / (arguments.config or "serve_config.yaml")
    with application(config, folders, out / "serve.log") as app:
        headers = {"X-Internal-API-Key": app.key}
        with httpx.Client(base_url=app.base_url, headers=headers, trust_env=False) as client:
            health = wait_until_ready(app, client)
            body = {
                "musetalk_job_id": job_id,
                "video_url": video.url,
                "audio_url": audio.url,
                "resolution": arguments.resolution,
                "aspect_ratio": arguments.aspect_ratio,
            }
            answer = run_job(client, body)
            # The public address may belong to another machine, so only its path is used.
            fetch(client, urlsplit(answer["output_url"]).path, result)
        say("stopping the application")
        app.process.terminate()  # it stops while the contact sheet is drawn
        write_sheet(video, result, sheet)
    report(answer, health, result, sheet)


def write_sheet(video: Media, result: Path, sheet: Path) -> None:
    """Draw the contact sheet. A source at an address is fetched once more for it."""
    if video.path is not None:
        write_contact_sheet(video.path, result, sheet)
        return
    with tempfile.TemporaryDirectory() as folder, httpx.Client() as client:
        source = Path(folder) / "source"
        fetch(client, video.url, source)
        write_contact_sheet(source, result, sheet)


def report(answer: dict[str, Any], health: dict[str, Any], result: Path, sheet: Path) -> None:
    """Print which engine drew, how long it took, and where the result is."""
    engine = health.get("engine", "unknown")
    print(f"\nengine         {engine}")
    print(f"seconds        {answer['metrics']['total_time']:.1f}")
    print(f"receipt        {receipt_line(answer['metrics']['receipt'])}")
    print(f"video          {os.path.relpath(result)}")
    print(f"contact sheet  {os.path.relpath(sheet)}")
    if engine == "warp":
        print(
            "\n`warp` shapes the mouth of the source frames from the sound; it needs no weights.\n"
            "`make weights` fetches MuseTalk's, and the next run then uses them."
        )


def main() -> int:
    """Run the demo; return 0, or 1 after one sentence on standard error."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # `kill` and a closed terminal stop the demo as Ctrl-C does.
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    try:
        do_one_job(parse_arguments())
    except DemoFailed as failed:
        print(f"\nmake run: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake run: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
