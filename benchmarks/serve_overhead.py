"""What Serve costs: the same job through the application and in one process, in one run.

    python benchmarks/serve_overhead.py [--seconds 30] [--size 1280x720] [--rounds 3]

Prints wall seconds, CPU seconds (of all processes that took part) and peak memory (sum of private
pages over the processes) of both, in turn, and their ratio. Both use the same engine, options and
number of encoder threads; start-up and model loading are outside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from project import ROOT

from tests.serve.running import RunningApp, running_app

SAMPLE_S = 0.1


@dataclass(frozen=True)
class Cost:
    """Of one job."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        video, audio = make_media(folder, args.size, args.seconds)
        served, alone = [], []
        with running_app(folder / "app") as app, one_process(folder) as ask:
            do_served(app, video, audio)  # both warm
            ask(video, audio)
            for _ in range(args.rounds):
                processes = [p for p in psutil.process_iter() if in_session(p, app)]
                served.append(measure(lambda: do_served(app, video, audio), processes))
                alone.append(ask(video, audio))
    report(args, served, alone)


def make_media(folder: Path, size: str, seconds: float) -> tuple[Path, Path]:
    """Return a talking-head clip (a third as long as the sound) and speech."""
    from demo.__main__ import CACHE, SPEECH_ROOTS
    from demo.media import demo_speech, demo_video

    video, audio = folder / "video.mp4", folder / "audio.wav"
    box = size.replace("x", ":")
    scale = f"scale={box}:force_original_aspect_ratio=increase,crop={box}"
    run = ["ffmpeg", "-v", "error", "-y"]
    source = str(demo_video(CACHE))
    subprocess.run([*run, "-i", source, "-vf", scale, "-crf", "16", str(video)], check=True)
    sound = str(demo_speech(CACHE, SPEECH_ROOTS))
    loop = ["-stream_loop", "-1", "-i", sound, "-t", str(seconds)]
    subprocess.run([*run, *loop, str(audio)], check=True)
    return video, audio


def do_served(app: RunningApp, video: Path, audio: Path) -> None:
    """Do the job by POST /generate."""
    response = app.generate(
        musetalk_job_id=uuid.uuid4().hex, video_url=video.as_uri(), audio_url=audio.as_uri()
    )
    assert response.status_code == 200, response.text


@contextlib.contextmanager
def one_process(folder: Path) -> Iterator[Callable[[Path, Path], Cost]]:
    """Start a process with everything loaded; it does a job for each line that it is sent."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    send, receive = process.stdin, process.stdout

    def ask(video: Path, audio: Path) -> Cost:
        def do() -> None:
            send.write(json.dumps([str(video), str(audio), str(folder / "alone.mp4")]) + "\n")
            send.flush()
            assert receive.readline().strip() == "done"

        return measure(do, [psutil.Process(process.pid)])

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def child() -> None:
    """Do jobs in this process until standard input ends."""
    from musetalk_pipeline.engines.warp.engine import WarpAudioEncoder, WarpEngine
    from musetalk_pipeline.faces.mesh import MeshDetector
    from musetalk_pipeline.options import JobOptions
    from musetalk_pipeline.pipeline import Tools, run

    tools = Tools(MeshDetector(), WarpEngine(), WarpAudioEncoder())
    for line in sys.stdin:
        run(*map(Path, json.loads(line)), JobOptions(), tools)
        print("done", flush=True)


def in_session(process: psutil.Process, app: RunningApp) -> bool:
    """Tell whether a process belongs to the application's Ray session."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("RAY_TMPDIR") == str(app.ray_folder)
    return False


def measure(do: Callable[[], None], processes: list[psutil.Process]) -> Cost:
    """Return what `do` costs `processes` and their children."""
    peak, stop = [0.0], threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            peak[0] = max(peak[0], sum(map(private_mib, family(processes))))

    sampler = threading.Thread(target=sample)
    before, started = cpu_seconds(processes), time.perf_counter()
    sampler.start()
    try:
        do()
    finally:
        wall_s = time.perf_counter() - started
        stop.set()
        sampler.join()
    return Cost(wall_s, cpu_seconds(processes) - before, peak[0])


def family(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes and all below them, each once."""
    found: dict[int, psutil.Process] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for one in [process, *process.children(recursive=True)]:
                found[one.pid] = one
    return list(found.values())


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return user and system seconds, waited-for children included."""
    total = 0.0
    for process in family(processes):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def private_mib(process: psutil.Process) -> float:
    """Return the memory that only this process has, in MiB."""
    with contextlib.suppress(psutil.Error):
        return float(process.memory_full_info().uss) / 2**20
    return 0.0


def report(args: argparse.Namespace, served: list[Cost], alone: list[Cost]) -> None:
    """Print the table and the ratios."""
    print(f"job: {args.seconds:g} s of sound, {args.size}, {args.rounds} rounds, medians")
    print("| | wall s | CPU s | peak private MiB |")
    print("|---|---|---|---|")
    medians = []
    for name, costs in (("through Serve", served), ("one process", alone)):
        row = [
            statistics.median(getattr(c, field) for c in costs)
            for field in ("wall_s", "cpu_s", "peak_mib")
        ]
        medians.append(row)
        print(f"| {name} | {row[0]:.2f} | {row[1]:.2f} | {row[2]:.0f} |")
    ratios = [first / second for first, second in zip(*medians, strict=True)]
    print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |")


if __name__ == "__main__":
    child() if sys.argv[1:] == ["--child"] else main()
