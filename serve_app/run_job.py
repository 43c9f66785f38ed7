"""One job, then exit: for providers that run a container per job.

    VIDEO_URL=… AUDIO_URL=… OUTPUT_URL=… python -m serve_app.run_job      (HTTP PUT of the result)
    VIDEO_URL=… AUDIO_URL=… OUTPUT_PATH=… python -m serve_app.run_job     (a file and its sidecar)

`lipsync run-job` is the same. The pipeline runs in this process, without Ray. `--help` lists the
variables and the exit codes. The steps come in this order, so that no work is wasted:
1. The variables, the configuration and the place of the result are checked.
2. Both inputs are fetched.
3. The engine, the landmark detector and the audio encoder are loaded, and the pipeline runs.
4. The result is stored.
SIGTERM and Ctrl-C end it at any point, and nothing is left behind.
"""

import argparse
import asyncio
import errno
import json
import logging
import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musetalk_pipeline.errors import (
    PipelineError,
    ProcessingError,
    Stage,
    UploadFailed,
)
from musetalk_pipeline.files import part_name
from musetalk_pipeline.pipeline import Result, RunProgress, Tools, run
from musetalk_pipeline.progress_bar import ProgressBar
from musetalk_pipeline.receipts.receipt import Receipt, receipt_json, receipt_of
from serve_app.config.config_file import ConfigInvalid, faults_of, read_config_file
from serve_app.config.environment import Environment, read_environment
from serve_app.config.gpu_class import detect_gpu_class, gpu_class
from serve_app.config.settings import AppArgs, InputSettings
from serve_app.contract.requests import JobRequest
from serve_app.graph.builders import build_audio_encoder, build_detector, build_engine, resolve
from serve_app.graph.prices import prices_of
from serve_app.inputs.download_body import Downloaded
from serve_app.inputs.downloads import download
from serve_app.net.addresses import AddressPolicy
from serve_app.one_shot.exit_codes import (
    BAD_INPUT,
    DONE,
    INTERRUPTED,
    OWN_FAULT,
    TERMINATED,
    exit_code,
)
from serve_app.one_shot.stopping import Stopped, Stopping
from serve_app.one_shot.variables import VARIABLES, OneShot, first_line, make_room, read_one_shot
from serve_app.outputs.put import PutStore
from serve_app.outputs.store import SidecarFacts, peak_ram_kb, sidecar
from serve_app.telemetry.logs import set_up_logging
from serve_app.telemetry.redact import redact

logger = logging.getLogger("serve_app.run_job")  # not `__main__`, whose logger has no handlers

CONFIG = Path(__file__).resolve().parent.parent / "serve_config.yaml"
EXIT_CODES = {
    DONE: "The result is stored.",
    OWN_FAULT: "This machine is at fault (network, disk, GPU, configuration). Try another one.",
    BAD_INPUT: "The input or a variable of the job is at fault. Do not try again.",
    INTERRUPTED: "Ctrl-C ended the job. Nothing is left behind.",
    TERMINATED: "SIGTERM ended the job. Nothing is left behind.",
}


def main(arguments: list[str] | None = None, stopping: Stopping | None = None) -> int:
    """Do the job that the environment describes; return the exit code.

    Raises:
        Stopped: a signal came, and `stopping` is installed.
    """
    _parser().parse_args(arguments)
    stopping = stopping or Stopping()
    try:
        env = read_environment()
        set_up_logging(env.secrets, is_json=env.logs_json)
        summary = _do(read_one_shot(os.environ), _read_args(os.environ), env, stopping)
    except Exception as exc:  # the boundary of the process, where every error is printed once
        error = exc if isinstance(exc, PipelineError) else _as_pipeline_error(exc)
        print(f"error: {error.code} ({error.stage}): {redact(error.message)}", file=sys.stderr)
        if error.hint is not None:
            print(f"hint: {redact(error.hint)}", file=sys.stderr)
        return exit_code(error)
    print(json.dumps(summary))
    return DONE


def _parser() -> argparse.ArgumentParser:
    def table(rows: Mapping[Any, str]) -> str:
        indent = " " * 15
        return "\n".join(
            textwrap.fill(f"  {name!s:13}{text}", 88, subsequent_indent=indent)
            for name, text in rows.items()
        )

    return argparse.ArgumentParser(
        prog="python -m serve_app.run_job",
        description="Do the one job that the environment describes, then exit.",
        epilog=f"variables:\n{table(VARIABLES)}\n\n"
        "The variables of the served application (MUSETALK_…, ALLOWED_SOURCE_HOSTS,\n"
        "LIPSYNC_ALLOWED_FOLDERS, …) mean what docs/configuration.md says of them.\n\n"
        f"exit codes:\n{table(EXIT_CODES)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _do(job: OneShot, args: AppArgs, env: Environment, stopping: Stopping) -> dict[str, Any]:
    started = time.monotonic()
    args = resolve(args, env)
    if job.output_url is None:
        make_room(job.output_path)
    if env.max_file_mb is not None:
        inputs = args.inputs.model_copy(update={"max_file_mb": env.max_file_mb})
        args = args.model_copy(update={"inputs": inputs})
    with _scratch(env) as folder:
        scratch = Path(folder)
        stopping.remove_at_end(scratch)
        media = asyncio.run(_fetch(job.request, scratch, args.inputs, env))
        fetched = time.monotonic()
        result = _draw(job.request, media, scratch, args, env)

        def receipt(upload_s: float) -> Receipt:
            return receipt_of(
                result.receipt.work,
                prices_of(args),
                finished_s=result.receipt.finished_s,
                wall_s=time.monotonic() - started,
                last_stages={"download": fetched - started, "upload": upload_s},
            )

        def note(upload_s: float) -> bytes:
            return sidecar(_facts(job, result, env, media, receipt(upload_s)))

        storing = time.monotonic()
        where = _store(job, result.path, note, stopping)
        stored_s = time.monotonic() - storing
    return {
        "status": "success",
        "output": where,
        "frames": result.frames,
        "engine": result.engine,
        "receipt": receipt_json(receipt(stored_s)),
        "warnings": list(result.warnings),
    }


def _scratch(env: Environment) -> "tempfile.TemporaryDirectory[str]":
    if env.work_dir is not None:
        env.work_dir.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(
        prefix="lipsync-", dir=env.work_dir, ignore_cleanup_errors=True
    )


@dataclass(frozen=True, slots=True)
class _Media:
    """The files of a job. `others`: the sounds of its segments, by their addresses."""

    video: Downloaded
    audio: Downloaded
    others: dict[str, Path]


async def _fetch(
    request: JobRequest, folder: Path, inputs: InputSettings, env: Environment
) -> _Media:
    limits = inputs.download_limits()
    policy = AddressPolicy(frozenset([*inputs.allowed_hosts, *env.allowed_hosts]))
    folders = [*inputs.allowed_folders, *env.allowed_folders]
    video, audio = [
        await download(url, folder / name, policy=policy, limits=limits, allowed_folders=folders)
        for url, name in ((request.video_url, "video"), (request.audio_url, "audio"))
    ]
    others = {}
    for number, url in enumerate(request.params.urls, 2):
        file = await download(
            url, folder / f"audio{number}", policy=policy, limits=limits, allowed_folders=folders
        )
        # Together they may be as large as one input.
        limits = replace(limits, max_bytes=limits.max_bytes - file.size_bytes)
        others[url] = file.path
    return _Media(video, audio, others)


def _draw(
    request: JobRequest, media: _Media, scratch: Path, args: AppArgs, env: Environment
) -> Result:
    pool = args.pools[0]
    tools = Tools(
        build_detector(args),
        build_engine(args, pool, env),
        build_audio_encoder(args),
        pool=pool.name,
        gpu_class=gpu_class(env, detected=detect_gpu_class()),
    )
    logger.info("the job begins", extra={"engine": args.engine, "landmarks": args.landmarks})
    with ProgressBar("frames") as bar:
        return run(
            media.video.path,
            media.audio.path,
            scratch / "output.mp4",
            request.options(args.job_defaults()),
            tools,
            others=media.others,
            limits=args.inputs.limits(),
            block_s=args.driver.block_s,
            work_dir=scratch,
            on_progress=_Shown(bar).show,
        )


def _store(job: OneShot, video: Path, note: Callable[[float], bytes], stopping: Stopping) -> str:
    """Store the result. `note` makes the sidecar, given the seconds that this took."""
    if job.output_url is not None:
        no_sidecar = b""  # there is only one address, which is for the video
        return PutStore(job.output_url).put(job.request.musetalk_job_id, video, no_sidecar).url
    started = time.monotonic()
    target = job.output_path
    sidecar = target.with_suffix(".json")
    # The default folder belongs to all users, so the names of new files cannot be guessed.
    parts = [part_name(path) for path in (target, sidecar)]
    stopping.remove_at_end(*parts)
    try:
        with video.open("rb") as source, parts[0].open("xb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        with parts[1].open("xb") as sidecar_file:
            sidecar_file.write(note(time.monotonic() - started))
        parts[0].replace(target)  # only a complete file gets this name
        parts[1].replace(sidecar)
    except OSError as exc:
        raise UploadFailed(f"OUTPUT_PATH cannot be written: {exc.strerror}.") from exc
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return str(target)


def _facts(
    job: OneShot,
    result: Result,
    env: Environment,
    media: _Media,
    receipt: Receipt,
) -> SidecarFacts:
    return SidecarFacts(
        musetalk_job_id=job.request.musetalk_job_id,
        queue_job_id=env.salad_queue_job_id,
        gpu_class=receipt.gpu_class,
        aspect_ratio=job.request.aspect_ratio,
        resolution=job.request.resolution,
        generation_time_sec=round(receipt.stage_s["inference"], 3),
        script_wall_time_sec=round(receipt.wall_s, 3),
        peak_vram_mib=result.peak_memory_mib,
        peak_ram_kb=peak_ram_kb(),
        b2_bucket=None,
        b2_file_name=None,
        engine=result.engine,
        model_version=result.model_version,
        source_sha256=media.video.sha256,
        audio_sha256=media.audio.sha256,
        stage_times={name: round(value, 3) for name, value in receipt.stage_s.items()},
        receipt=receipt_json(receipt),
    )


def _read_args(env: Mapping[str, str]) -> AppArgs:
    path = Path(env.get("SERVE_CONFIG") or CONFIG)
    try:
        file = read_config_file(path)
        faults = faults_of(AppArgs, file, ("applications", 0, "args"))
    except ConfigInvalid as exc:
        raise ProcessingError(f"The configuration cannot be used: {exc.faults[0]}.") from exc
    except (LookupError, TypeError) as exc:
        raise ProcessingError(f"The configuration {path} has no applications[0].args.") from exc
    if faults:
        raise ProcessingError(f"The configuration cannot be used: {faults[0]}.")
    return AppArgs.model_validate(file.values["applications"][0]["args"])


def _as_pipeline_error(exc: Exception) -> PipelineError:
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProcessingError("The disk of this machine is full.")
    if not isinstance(exc, OSError | ValueError):
        logger.error("unexpected", exc_info=exc)
    return ProcessingError(f"{type(exc).__name__}: {first_line(exc)}", stage=Stage.UNKNOWN)


class _Shown:
    """Shows how far a job is: as a bar, or without a terminal as a log line for each stage."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._stage = ""

    def show(self, progress: RunProgress) -> None:
        """Show how far the job is."""
        total = progress.frames_total or None
        if self._bar.is_drawn:
            self._bar.show(progress.stage, progress.frames_done, total)
        elif progress.stage != self._stage:
            frames = {"frames": total} if total else {}
            logger.info("stage begins", extra={"stage": progress.stage, **frames})
        self._stage = progress.stage


def _entry() -> None:
    stopping = Stopping()
    stopping.install()
    try:
        code = main(stopping=stopping)
    except Stopped as stopped:
        stopping.end(stopped)
    sys.exit(code)


if __name__ == "__main__":
    _entry()
