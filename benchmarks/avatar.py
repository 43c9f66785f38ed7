"""What a kept avatar saves: the second job with a video against the first, and against the floor.

    python benchmarks/avatar.py [--seconds 10] [--size 1280x720] [--rounds 3]

The floor is the work that no cache can save: decode, generate and encode, by as many threads as
the stages of the application have, with everything else made beforehand. MuseTalk's networks have
small random weights, so that drawing costs little, as on a fast GPU. Prints wall seconds and CPU
seconds of all processes that took part. The last line is a JSON object: `second_of_floor` and
`second_of_first` are ratios of wall seconds, the medians of their rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from media import make_clip, make_speech
from project import ROOT

from tests.serve.running import RunningApp, running_app

COMPOSE_THREADS = 2  # of the Finisher, unless it is configured otherwise


@dataclass(frozen=True)
class Cost:
    """Of one job."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        report(measure_rounds(Path(name), args))


def measure_rounds(folder: Path, args: argparse.Namespace) -> list[dict[str, Cost]]:
    """Return the costs of the first job, the second one and the floor, for each round."""
    models = folder / "models"
    maker = [sys.executable, str(ROOT / "benchmarks" / "random_weights.py"), str(models)]
    subprocess.run([*maker, "--size", "small"], check=True, stdout=subprocess.DEVNULL)
    videos, sounds = make_media(folder, args)
    warming = folder / "short.mp4", folder / "short.wav"
    make_clip(warming[0], 320, 240, 25)
    make_speech(warming[1], 1.0)
    settings: dict[str, Any] = {
        "engine": "musetalk",
        "models_dir": str(models),
        "landmarks": "mesh",
        "avatars": {"max_gb": 10},
    }
    rounds = []
    with running_app(folder / "app", **settings) as app:
        floor = Floor(models, folder, folder / "app" / "state" / "avatars")
        do_served(app, *warming)  # everything warm
        floor.prepare(*warming)
        floor.run()
        processes = [p for p in psutil.process_iter() if in_session(p, app)]
        for video in videos:
            first = measure(lambda v=video: do_served(app, v, sounds[0]), processes)
            second = measure(lambda v=video: do_served(app, v, sounds[1]), processes)
            floor.prepare(video, sounds[1])
            alone = measure(floor.run, [psutil.Process()], below=False)
            rounds.append({"first": first, "second": second, "floor": alone})
    return rounds


def make_media(folder: Path, args: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Return a video for each round, all alike but for their bytes, and two sounds."""
    width, height = map(int, args.size.split("x"))
    clip = folder / "clip.mp4"
    make_clip(clip, width, height, round(args.seconds * 25))
    videos = [folder / f"video{number}.mp4" for number in range(args.rounds)]
    for number, video in enumerate(videos):
        copy = ["-i", str(clip), "-c", "copy", "-metadata", f"comment={number}", str(video)]
        subprocess.run(["ffmpeg", "-v", "error", *copy], check=True)
    sounds = [folder / "one.wav", folder / "two.wav"]
    make_speech(sounds[0], args.seconds)
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(sounds[0]), "-af", "areverse", str(sounds[1])],
        check=True,
    )
    return videos, sounds


def do_served(app: RunningApp, video: Path, audio: Path) -> None:
    """Do the job by POST /generate."""
    answer = app.generate(
        musetalk_job_id=uuid.uuid4().hex, video_url=video.as_uri(), audio_url=audio.as_uri()
    )
    assert answer.status_code == 200, answer.text
    stages = answer.json()["metrics"]["stage_times"]
    print(json.dumps(stages), file=sys.stderr)


class Floor:
    """Decode, generate and encode in this process. `prepare` makes everything else.

    `kept`: the avatars of the application, which has done the same job.
    """

    def __init__(self, models: Path, folder: Path, kept: Path) -> None:
        from musetalk_pipeline.engines import make_audio_encoder, make_engine
        from musetalk_pipeline.faces.mesh import MeshDetector

        self._folder, self._kept = folder, kept
        self._detector = MeshDetector()
        self._engine = make_engine("musetalk", models, device="cpu", threads=1)
        self._audio_encoder = make_audio_encoder("musetalk", models)
        self._segments: list[tuple[Any, Any, Any]] = []

    def prepare(self, video: Path, audio: Path) -> None:
        """Open the job; read its avatar and make what is spoken."""
        from musetalk_pipeline.avatars.block_file import unpack_block
        from musetalk_pipeline.avatars.identity import block_name
        from musetalk_pipeline.job_media import JobFiles
        from musetalk_pipeline.options import JobOptions, MediaLimits
        from musetalk_pipeline.stages import open_job

        work = Path(tempfile.mkdtemp(dir=self._folder))
        files, options = JobFiles(video, audio), JobOptions()
        self._job = job = open_job(files, work, options, MediaLimits(), self._detector)
        kept = self._kept_for(job.source.sha256)
        avatars = []
        for block in job.plan.blocks:
            name = block_name(block, job.plan, job.picture, options)
            avatars.append(unpack_block((kept / f"{name}.block").read_bytes(), block))
        self._segments = [
            (
                segment,
                avatars[segment.block],
                self._audio_encoder.encode(job.audio, job.plan.fps, segment, options.speech),
            )
            for segment in job.plan.segments
        ]

    def _kept_for(self, video_sha256: str) -> Path:
        """Return the folder of the kept avatar of a video."""
        from serve_app.avatars.local import LocalAvatars
        from serve_app.avatars.shelf import AvatarShelf

        shelf = AvatarShelf(LocalAvatars(self._kept, 1e12, 1e9))
        [avatar] = [one for one in shelf.list() if one.about.video_sha256 == video_sha256]
        return self._kept / avatar.avatar_id

    def run(self) -> None:
        """Do the rest, the stages at the same time. Decoders go on from segment to segment as in
        the application; starting one for each would not be the least that can be done.
        """
        from musetalk_pipeline.media.segment_frames import frames_in_order
        from musetalk_pipeline.media.shared_readers import SharedReaders
        from musetalk_pipeline.stages import compose_segment

        job, options = self._job, self._job.options.speech
        readers = SharedReaders(COMPOSE_THREADS)
        read = readers.of("floor", job.source, job.picture)
        with ThreadPoolExecutor(1) as drawing, ThreadPoolExecutor(COMPOSE_THREADS) as composing:

            def one(part: tuple[Any, Any, Any]) -> None:
                segment, avatar, speech = part
                drawn = drawing.submit(self._engine.generate, avatar, speech, segment, options)
                frames = frames_in_order(job.source, job.picture, segment, read=read)
                compose_segment(job, avatar, drawn.result(), frames=frames)

            list(composing.map(one, self._segments))
        readers.close()


def in_session(process: psutil.Process, app: RunningApp) -> bool:
    """Tell whether a process belongs to the application's Ray session."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("RAY_TMPDIR") == str(app.ray_folder)
    return False


def measure(do: Callable[[], None], processes: list[psutil.Process], *, below: bool = True) -> Cost:
    """Return what `do` costs `processes` and, if `below`, all processes below them."""
    before, started = cpu_seconds(processes, below), time.perf_counter()
    do()
    wall_s = time.perf_counter() - started
    return Cost(wall_s, cpu_seconds(processes, below) - before)


def cpu_seconds(processes: list[psutil.Process], below: bool) -> float:
    """Return user and system seconds, waited-for children included."""
    found: dict[int, psutil.Process] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for one in [process, *(process.children(recursive=True) if below else [])]:
                found[one.pid] = one
    total = 0.0
    for process in found.values():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def report(rounds: list[dict[str, Cost]]) -> None:
    """Print the table and, last, the ratios."""
    print("| | wall s | CPU s |")
    print("|---|---|---|")
    medians = {
        name: {
            key: statistics.median(asdict(costs[name])[key] for costs in rounds)
            for key in ("wall_s", "cpu_s")
        }
        for name in ("first", "second", "floor")
    }
    for name, cost in medians.items():
        print(f"| {name} | {cost['wall_s']:.2f} | {cost['cpu_s']:.2f} |")

    def ratios(of: str, over: str, key: str) -> list[float]:
        return [round(asdict(costs[of])[key] / asdict(costs[over])[key], 3) for costs in rounds]

    def ratio(of: str, over: str, key: str) -> float:
        return round(statistics.median(ratios(of, over, key)), 3)

    result = {
        "second_of_floor_each": ratios("second", "floor", "wall_s"),
        "second_of_floor": ratio("second", "floor", "wall_s"),
        "second_of_floor_cpu": ratio("second", "floor", "cpu_s"),
        "second_of_first": ratio("second", "first", "wall_s"),
        "second_of_first_cpu": ratio("second", "first", "cpu_s"),
        **{
            f"{name}_{key}": round(value, 3)
            for name, cost in medians.items()
            for key, value in cost.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
