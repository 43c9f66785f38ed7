"""One job, then exit: for providers that run a container per job.

    VIDEO_URL=… AUDIO_URL=… OUTPUT_URL=… python -m serve_app.run_job      (HTTP PUT of the result)
    VIDEO_URL=… AUDIO_URL=… OUTPUT_PATH=… python -m serve_app.run_job     (a file and its sidecar)

No Ray: the pipeline runs in this process. `serve_config.yaml` (or the file that SERVE_CONFIG names)
says which engine, limits and defaults; its first pool says on what. `RESOLUTION`, `ASPECT_RATIO`
and `PARAMS` (JSON) may be set too. Exit code 0: done. 1: this machine is at fault, try elsewhere.
2: the input is at fault, do not try again.
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from tqdm import tqdm

from musetalk_pipeline.errors import (
    InvalidOptions,
    MediaError,
    PipelineError,
    ProcessingError,
    Stage,
    UploadFailed,
)
from musetalk_pipeline.pipeline import Progress, Result, Tools, run
from serve_app.addresses import AddressPolicy
from serve_app.downloads import Downloaded, DownloadLimits, download
from serve_app.logs import set_up_logging
from serve_app.put_store import PutStore
from serve_app.redact import redact
from serve_app.schemas import JobRequest
from serve_app.selection import build_detector, build_engine, build_listener, resolve
from serve_app.settings import AppArgs, Environment, read_environment
from serve_app.storage import SidecarFacts, sidecar

DONE, OWN_FAULT, BAD_INPUT = 0, 1, 2
CONFIG = Path(__file__).resolve().parent.parent / "serve_config.yaml"


@dataclass(frozen=True, slots=True)
class OneShot:
    """What the environment asks for. Exactly one of `output_url` and `output_path` is set."""

    request: JobRequest
    output_url: str | None
    output_path: Path | None


def main() -> int:
    """Do the job that the environment describes."""
    try:
        env = read_environment()
        set_up_logging(env)
        summary = _do(read_one_shot(os.environ), _read_args(os.environ), env)
    except (PipelineError, ValueError, OSError) as exc:
        error = exc if isinstance(exc, PipelineError) else _as_pipeline_error(exc)
        print(f"error: {error.code} ({error.stage}): {redact(error.message)}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, MediaError) else OWN_FAULT
    print(json.dumps(summary))
    return DONE


def read_one_shot(env: Mapping[str, str]) -> OneShot:
    """Read contracts.md §4's variables.

    Raises:
        InvalidOptions: one is missing or cannot be read. The sentence names it.
    """
    missing = [name for name in ("VIDEO_URL", "AUDIO_URL") if not env.get(name)]
    if missing:
        raise InvalidOptions(f"Set {' and '.join(missing)}.")
    output_url, output_path = env.get("OUTPUT_URL") or None, env.get("OUTPUT_PATH") or None
    if (output_url is None) == (output_path is None):
        raise InvalidOptions("Set either OUTPUT_URL or OUTPUT_PATH.")
    try:
        request = JobRequest(
            musetalk_job_id=env.get("JOB_ID") or "one-shot",
            video_url=env["VIDEO_URL"],
            audio_url=env["AUDIO_URL"],
            resolution=env.get("RESOLUTION") or None,
            aspect_ratio=env.get("ASPECT_RATIO") or None,
            params=json.loads(env.get("PARAMS") or "{}"),
        )
    except (ValidationError, json.JSONDecodeError) as exc:
        raise InvalidOptions(f"PARAMS and the addresses must be valid: {_first_line(exc)}") from exc
    return OneShot(request, output_url, None if output_path is None else Path(output_path))


def _do(job: OneShot, args: AppArgs, env: Environment) -> dict[str, Any]:
    started = time.monotonic()
    args = resolve(args, env)
    if job.output_path is not None and not job.output_path.parent.is_dir():
        raise UploadFailed(f"The folder of OUTPUT_PATH does not exist: {job.output_path.parent}")
    with tempfile.TemporaryDirectory(prefix="lipsync-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        video, audio = asyncio.run(_fetch(job.request, scratch, args, env))
        tools = Tools(
            build_detector(args), build_engine(args, args.pools[0], env), build_listener(args)
        )
        with _Bar() as bar:
            result = run(
                video.path,
                audio.path,
                scratch / "output.mp4",
                job.request.options(args.job_defaults()),
                tools,
                limits=args.inputs.limits(),
                on_progress=bar.show,
            )
        elapsed_s = time.monotonic() - started
        note = sidecar(_facts(job, result, env, video, audio, elapsed_s))
        where = _store(job, result.path, note)
    return {"status": "success", "output": where, "frames": result.frames, "engine": result.engine}


async def _fetch(
    request: JobRequest, folder: Path, args: AppArgs, env: Environment
) -> tuple[Downloaded, Downloaded]:
    limits = DownloadLimits(
        max_bytes=args.inputs.limits().max_bytes, total_s=args.inputs.download_timeout_s
    )
    policy = AddressPolicy(frozenset([*args.inputs.allowed_hosts, *env.allowed_hosts]))
    folders = [*args.inputs.allowed_folders, *env.allowed_folders]
    video, audio = [
        await download(url, folder / name, policy=policy, limits=limits, allowed_folders=folders)
        for url, name in ((request.video_url, "video"), (request.audio_url, "audio"))
    ]
    return video, audio


def _store(job: OneShot, video: Path, note: bytes) -> str:
    if job.output_url is not None:
        return PutStore(job.output_url).put(job.request.musetalk_job_id, video, note).url
    assert job.output_path is not None
    target = job.output_path.absolute()
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(video, part)
        target.with_suffix(".json").write_bytes(note)
        part.replace(target)  # complete before it has its name
    except OSError as exc:
        raise UploadFailed(f"OUTPUT_PATH cannot be written: {exc.strerror}.") from exc
    finally:
        part.unlink(missing_ok=True)
    return str(target)


def _facts(
    job: OneShot,
    result: Result,
    env: Environment,
    video: Downloaded,
    audio: Downloaded,
    elapsed_s: float,
) -> SidecarFacts:
    drawing = ("encode", "generate")
    return SidecarFacts(
        musetalk_job_id=job.request.musetalk_job_id,
        queue_job_id=env.salad_queue_job_id,
        gpu_class=None,
        aspect_ratio=job.request.aspect_ratio,
        resolution=job.request.resolution,
        generation_time_sec=round(sum(result.stage_seconds.get(name, 0.0) for name in drawing), 3),
        script_wall_time_sec=round(elapsed_s, 3),
        peak_vram_mib=result.peak_memory_mib,
        peak_ram_kb=None,
        b2_bucket=None,
        b2_file_name=None,
        engine=result.engine,
        model_version=result.model_version,
        source_sha256=video.sha256,
        audio_sha256=audio.sha256,
        stage_times={name: round(value, 3) for name, value in result.stage_seconds.items()},
    )


def _read_args(env: Mapping[str, str]) -> AppArgs:
    document = yaml.safe_load(Path(env.get("SERVE_CONFIG") or CONFIG).read_text())
    return AppArgs.model_validate(document["applications"][0]["args"])


def _as_pipeline_error(exc: Exception) -> PipelineError:
    return ProcessingError(f"{type(exc).__name__}: {_first_line(exc)}", stage=Stage.UNKNOWN)


def _first_line(exc: Exception) -> str:
    if isinstance(exc, ValidationError):
        error = exc.errors(include_input=False)[0]
        return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
    return (str(exc).splitlines() or [""])[0]


class _Bar:
    """Frames done of frames to do, on standard error."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] = tqdm(unit="frame", disable=not sys.stderr.isatty())

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        """Move the bar."""
        self._bar.total = progress.frames_total or None
        self._bar.n = progress.frames_done
        self._bar.refresh()


if __name__ == "__main__":
    sys.exit(main())
