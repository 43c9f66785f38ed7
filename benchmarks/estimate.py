"""How near estimates are to what jobs take that do less than a whole job, or more.

    python benchmarks/estimate.py [--seconds 8] [--size 640x360] [--engine warp]

Runs one application. After three whole jobs, all of new avatars, it requests an estimate of a job
of each kind, and then runs these jobs: `unlearnt`. It does the same again with other avatars, when
a job of each kind has been learnt from: `learnt`. MuseTalk's networks have small random weights, so
that drawing costs little, as on a fast GPU. The last line is one JSON object with the ratio of the
estimated seconds to those that each job took, by kind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from media import make_clip, make_speech
from project import ROOT

from tests.serve.running import RunningApp, running_app

FPS = 25
WHOLE_JOBS = 3
SPOKEN = 0.3  # of the sound that is mostly silent, and of the video of `segments`
PLAYED = 0.25  # of the video of `repeated`


@dataclass(frozen=True, slots=True)
class Media:
    """The inputs of all jobs. `quiet`: as long as `audio`, and silent after its beginning."""

    video: Path
    audio: Path
    quiet: Path
    size: tuple[int, int]
    seconds: float


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--engine", choices=("warp", "musetalk"), default="warp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        media = make_media(folder, options.size, options.seconds)
        with running_app(folder / "app", **settings_of(options.engine, folder)) as app:
            measured = measure(app, media)
    print(json.dumps(vars(options) | measured))
    return 0


def settings_of(engine: str, folder: Path) -> dict[str, Any]:
    """Return the configuration of the application. Makes the weights if there have to be some."""
    settings: dict[str, Any] = {"engine": engine, "avatars": {"max_gb": 10}}
    if engine == "musetalk":
        models = str(folder / "models")
        maker = [sys.executable, str(ROOT / "benchmarks" / "random_weights.py"), models]
        subprocess.run([*maker, "--size", "small"], check=True, stdout=subprocess.DEVNULL)
        settings["models_dir"] = models
    return settings


def make_media(folder: Path, size: str, seconds: float) -> Media:
    """Write the inputs."""
    width, height = map(int, size.split("x"))
    media = Media(
        folder / "clip.mp4", folder / "speech.wav", folder / "quiet.wav", (width, height), seconds
    )
    make_clip(media.video, width, height, round(seconds * FPS), FPS)
    make_speech(media.audio, seconds)
    sound, rate = soundfile.read(media.audio)
    sound[round(SPOKEN * len(sound)) :] = 0.0
    soundfile.write(media.quiet, np.asarray(sound), rate)
    return media


def measure(app: RunningApp, media: Media) -> dict[str, dict[str, float]]:
    """Return the ratios before and after a job of each kind has been learnt from."""
    new_avatars = count(1)
    for _ in range(WHOLE_JOBS):
        took_s(app, body_of(media, avatar=next(new_avatars)))
    return {name: dict(ratios(app, media, new_avatars)) for name in ("unlearnt", "learnt")}


def ratios(
    app: RunningApp, media: Media, new_avatars: Iterator[int]
) -> Iterator[tuple[str, float]]:
    """Yield each kind of job, with the estimate of one divided by what it took."""
    jobs = jobs_by_kind(media, new_avatars)
    made = {kind: estimated(app, body) for kind, body in jobs.items()}
    for kind, body in jobs.items():
        seconds = took_s(app, body)
        print(kind, round(made[kind]["seconds"], 2), round(seconds, 2), file=sys.stderr)
        yield kind, round(made[kind]["seconds"] / seconds, 2)


def jobs_by_kind(media: Media, new_avatars: Iterator[int]) -> dict[str, dict[str, Any]]:
    """Return the request of a job of each kind. All avatars but that of `kept` are new."""
    spoken = {"start_s": 0.0, "end_s": SPOKEN * media.seconds, "audio": {}}
    width, height = media.size
    others: dict[str, dict[str, Any]] = {
        "whole": {},
        "segments": {"segments": [spoken]},
        "resting": {"rest_in_silence": True},
        "repeated": {"video_end_s": PLAYED * media.seconds},
        "followed": {"face": {"point": [width // 2, round(height * 0.45)], "frame": 0}},
        "all_faces": {"face": "all"},
    }
    jobs = {
        kind: body_of(media, avatar=next(new_avatars), **params) for kind, params in others.items()
    }
    jobs["resting"]["audio_url"] = media.quiet.as_uri()
    return {"kept": body_of(media, avatar=1), **jobs}


def body_of(media: Media, *, avatar: int, **params: Any) -> dict[str, Any]:
    """Return a request. Each number of `avatar` is an avatar of its own, of the same video."""
    return {
        "video_url": media.video.as_uri(),
        "audio_url": media.audio.as_uri(),
        "params": {"left_cheek_width": 60 + avatar, **params},
    }


def estimated(app: RunningApp, body: dict[str, Any]) -> dict[str, Any]:
    """Return the estimate of a job."""
    answer: dict[str, Any] = app.client.post("/v1/estimate", json=body).raise_for_status().json()
    return answer


def took_s(app: RunningApp, body: dict[str, Any]) -> float:
    """Do a job; return the seconds that it took."""
    answer = app.generate(musetalk_job_id=uuid.uuid4().hex, **body).raise_for_status().json()
    print(json.dumps(answer["metrics"]["receipt"]), file=sys.stderr)
    return float(answer["metrics"]["total_time"])


if __name__ == "__main__":
    sys.exit(main())
