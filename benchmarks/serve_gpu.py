"""Jobs through Ray Serve with the MuseTalk engine on a GPU: stage times and jobs a minute.

    python benchmarks/serve_gpu.py --models DIR --video FACE --audio SPEECH [--seconds 20]

Starts the application with the pool of serve_config.gpu.yaml (landmarks `mesh`), does a job of two
seconds, then the clip of `--seconds` alone, twice, and then two of them at once. Checks that each
result has all its frames. Prints one JSON object as the last line; `--out` writes it after each
step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from job_gpu import job_parser, make_media
from project import ROOT
from serve_overhead import cpu_seconds, in_session

from tests.serve.running import RunningApp, probe, running_app


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _parse(arguments)
    document: dict[str, Any] = {"size": options.size, "seconds": options.seconds, "steps": []}
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        video, audio = make_media(folder, options)
        short = folder / "short"
        short.mkdir()
        tiny_s = min(2.0, options.seconds)
        tiny = make_media(short, argparse.Namespace(**vars(options) | {"seconds": tiny_s}))
        started = time.perf_counter()
        try:
            with running_app(folder / "app", env=resources(options), **settings(options)) as app:
                document["start_s"] = round(time.perf_counter() - started, 2)
                for step, jobs in (
                    ("tiny", [tiny]),
                    ("first", [(video, audio)]),
                    ("second", [(video, audio)]),
                    ("two at once", [(video, audio)] * 2),
                ):
                    row = {"step": step} | do(app, jobs, folder)
                    document["steps"].append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
                    write(document, options.out)
        finally:
            log = folder / "app" / "log"
            if log.is_file():
                lines = log.read_text(errors="replace").splitlines()
                document["log_end"] = lines[-40:]
                print("\n".join(lines[-200:]), file=sys.stderr)
            write(document, options.out)
    print(json.dumps({key: value for key, value in document.items() if key != "log_end"}))
    return 0


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of serve_config.gpu.yaml, with landmarks that need no weights."""
    document = yaml.safe_load((ROOT / "serve_config.gpu.yaml").read_text())
    args: dict[str, Any] = document["applications"][0]["args"]
    args |= {"landmarks": "mesh", "models_dir": str(options.models.absolute())}
    args["preprocessor"].pop("num_gpus", None)  # of mmpose
    if options.device == "cpu":
        for pool in args["pools"]:
            pool |= {"num_gpus": 0.0, "dtype": "float32"}
    elif options.speedup is not None:
        for pool in args["pools"]:
            pool["speedup"] = options.speedup
    return args


def resources(options: argparse.Namespace) -> dict[str, str]:
    """Return what makes Ray count one GPU, also where it cannot ask the driver's library."""
    return {"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'} if options.device == "cuda" else {}


def do(app: RunningApp, jobs: Sequence[tuple[Path, Path]], folder: Path) -> dict[str, Any]:
    """Do jobs at once by POST /generate; return what they took together and each of them."""
    from psutil import process_iter

    processes = [process for process in process_iter() if in_session(process, app)]
    before, started = cpu_seconds(processes), time.perf_counter()
    with ThreadPoolExecutor(len(jobs)) as threads:
        rows = list(threads.map(lambda media: one(app, *media), jobs))
    wall_s = time.perf_counter() - started
    cpu_s = cpu_seconds(processes) - before
    for row in rows:
        found = probe(app.output({"output_url": row.pop("output_url")}, folder))
        row["frames"] = int(found["video"]["nb_read_frames"])
    return {
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s, 2),
        "jobs_per_minute": round(60 * len(rows) / wall_s, 2),
        "frames_per_s": round(sum(row["frames"] for row in rows) / wall_s, 2),
        "jobs": rows,
    }


def one(app: RunningApp, video: Path, audio: Path) -> dict[str, Any]:
    """Do one job; return its facts.

    Raises:
        RuntimeError: the application refused it, or it failed.
    """
    job_id = uuid.uuid4().hex
    started = time.perf_counter()
    response = app.generate(
        musetalk_job_id=job_id, video_url=video.as_uri(), audio_url=audio.as_uri()
    )
    wall_s = time.perf_counter() - started
    if response.status_code != 200:
        raise RuntimeError(f"{response.status_code}: {response.text[:1000]}")
    answer = response.json()
    state = app.job(job_id)
    seconds = state.get("progress", {}).get("stage_seconds", {})
    return {
        "wall_s": round(wall_s, 2),
        "output_url": answer["output_url"],
        "stage_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "metrics": answer.get("metrics"),
    }


def write(document: dict[str, Any], out: Path | None) -> None:
    """Write all figures so far."""
    if out:
        out.write_text(json.dumps(document, indent=2) + "\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = job_parser(__doc__)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument(
        "--speedup",
        choices=("none", "cuda_graphs", "compile"),
        help="instead of what serve_config.gpu.yaml says",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
