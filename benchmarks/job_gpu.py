"""A whole job in one process with the MuseTalk engine: where its time goes.

    python benchmarks/job_gpu.py --models DIR --video FACE --audio SPEECH [--seconds 20]

1. Makes a clip of `--size` with the face in its middle and a little noise, and speech as long.
2. Does the job by `python -m musetalk_pipeline`, as a user would: everything is loaded for it.
3. Does it again in this process with all loaded and warm, as a replica is; twice for each
   `--speedup`.

For each run: wall and CPU seconds (children included), seconds of each stage, and what part of the
wall time passes inside the networks on the GPU (CUDA events) and in the engine's calls. Prints one
JSON object as the last line; `--out` writes it after each run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from engine_gpu import NetworkClock
from networks import describe
from project import ROOT

from musetalk_pipeline.engines import make_audio_encoder, make_engine
from musetalk_pipeline.engines.musetalk.engine import MuseTalkEngine
from musetalk_pipeline.faces import make_detector
from musetalk_pipeline.networks.precision import resolve_device
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.pipeline import Tools, run

COMMAND_S = 300


class OnOneThread:
    """An engine whose calls all run on one thread, which lives as long as the engine.

    As in a replica: cuDNN remembers the algorithms that it has chosen for each thread, and every
    job in one process has threads of its own.
    """

    def __init__(self, engine: MuseTalkEngine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def __getattr__(self, name: str) -> Any:
        """Return what the engine has by that name; its work is sent to the thread."""
        found = getattr(self._engine, name)
        if name not in ("warm_up", "encode", "generate"):
            return found
        return lambda *arguments: self._thread.submit(found, *arguments).result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _parse(arguments)
    device = resolve_device(options.device)
    document: dict[str, Any] = {
        "machine": describe(device),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "dtype": options.dtype,
        "size": options.size,
        "seconds": options.seconds,
        "runs": [],
    }
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        video, audio = make_media(folder, options)
        if not options.no_command:
            keep(document, by_command(video, audio, folder, options), options.out)
        for speedup in options.speedup:
            for row in in_process(video, audio, folder, speedup, options, device):
                keep(document, row, options.out)
    print(json.dumps(document))
    return 0


def make_media(folder: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Return a clip with the face in its middle, and speech of the same length."""
    width, height = (int(side) for side in options.size.split("x"))
    side = height * 3 // 4 // 2 * 2
    video, audio = folder / "video.mp4", folder / "audio.wav"
    picture = (
        f"fps=25,scale={side}:{side},pad={width}:{height}:(ow-iw)/2:(oh-ih)/2:color=gray,"
        "noise=alls=6:allf=t,format=yuv420p"
    )
    loop = ["ffmpeg", "-v", "error", "-y", "-stream_loop", "-1"]
    length = ["-t", f"{options.seconds:g}"]
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-an"]
    made = [*loop, "-i", str(options.video), *length, "-vf", picture, *encode, str(video)]
    subprocess.run(made, check=True)
    subprocess.run([*loop, "-i", str(options.audio), *length, str(audio)], check=True)
    return video, audio


def by_command(
    video: Path, audio: Path, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Do the job by the command line; return what it took and printed."""
    command = [sys.executable, "-m", "musetalk_pipeline", str(video), str(audio)]
    command += ["-o", str(folder / "command.mp4"), "--engine", "musetalk", "--landmarks", "mesh"]
    command += ["--models", str(options.models.absolute())]
    command += ["--device", options.device, "--dtype", options.dtype]
    started, started_cpu = time.perf_counter(), cpu_seconds()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_S)
    row: dict[str, Any] = {
        "run": "command line",
        "wall_s": round(time.perf_counter() - started, 2),
        "cpu_s": round(cpu_seconds() - started_cpu, 2),
        "printed": done.stdout.splitlines(),
    }
    if done.returncode:
        row["failed"] = done.stderr[-1000:]
    return row


def in_process(
    video: Path,
    audio: Path,
    folder: Path,
    speedup: str,
    options: argparse.Namespace,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Load everything, warm it up, do the job twice; return a row for each."""
    started = time.perf_counter()
    engine = make_engine(
        "musetalk",
        options.models,
        device=options.device,
        precision=options.dtype,
        speedup=speedup,  # type: ignore[arg-type]
    )
    assert isinstance(engine, MuseTalkEngine)
    cores = min(len(os.sched_getaffinity(0)), 64)
    audio_encoder = make_audio_encoder("musetalk", options.models)
    kept = OnOneThread(engine)
    tools = Tools(make_detector("mesh"), kept, audio_encoder, encoder_threads=cores)
    loaded = time.perf_counter()
    kept.warm_up()
    warmed = time.perf_counter()
    clock = NetworkClock(engine, device)
    rows = []
    for name in ("first", "second"):
        clock.take()
        started_cpu = cpu_seconds()
        result = run(video, audio, folder / "out.mp4", JobOptions(), tools)
        cpu_s = cpu_seconds() - started_cpu
        inside_s = clock.take()
        rows.append(
            {
                "run": f"in one process, {speedup}, {name}",
                "batch_size": engine.batch_size,
                "load_s": round(loaded - started, 2),
                "warm_up_s": round(warmed - loaded, 2),
                "wall_s": round(result.elapsed_s, 2),
                "cpu_s": round(cpu_s, 2),
                "frames": result.frames,
                "frames_with_face": result.frames_with_face,
                "frames_per_s": round(result.frames / result.elapsed_s, 2),
                "stage_seconds": {k: round(v, 2) for k, v in result.stage_seconds.items()},
                "engine_share": round(result.stage_seconds["inference"] / result.elapsed_s, 4),
                "networks_share": round(inside_s / result.elapsed_s, 4),
                "peak_mib": result.peak_memory_mib,
                "float32_redos": engine.counters.float32_redos,
                "warnings": list(result.warnings),
            }
        )
    clock.close()
    return rows


def cpu_seconds() -> float:
    """Return what this process and its ended children have used so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def keep(document: dict[str, Any], row: dict[str, Any], out: Path | None) -> None:
    """Add a row, print it, and write all so far."""
    document["runs"].append(row)
    print(json.dumps(row), file=sys.stderr, flush=True)
    if out:
        out.write_text(json.dumps(document, indent=2) + "\n")


def job_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the weights, the media of `make_media`, and the file for the figures."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True, help="weights as published")
    parser.add_argument("--video", type=Path, required=True, help="a face, square")
    parser.add_argument("--audio", type=Path, required=True, help="speech")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the clip and the speech")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = job_parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument(
        "--speedup", nargs="+", default=["none"], choices=("none", "cuda_graphs", "compile")
    )
    parser.add_argument("--no-command", action="store_true", help="leave out the command line")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
