"""`lipsync make VIDEO AUDIO`: a whole job in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync.flags import Audio, Force, Json, Video, takes_options
from lipsync.terminal import Terminal, terminal_of
from musetalk_pipeline.loading import ToolOptions
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.receipts.receipt import receipt_json, receipt_line

if TYPE_CHECKING:
    from lipsync.sources import Source
    from musetalk_pipeline.pipeline import Result


@takes_options
def make(
    context: typer.Context,
    video: Video,
    audio: Audio,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="MP4",
            help="Write the result to this file. Default: VIDEO-lipsync.mp4 next to the video.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="Draw frames of the video and the result into this picture."
        ),
    ] = None,
    deadline_s: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="SECONDS", help="Give up after this many seconds."),
    ] = None,
    json: Json = False,
    *,
    job: JobOptions,
    tools: ToolOptions,
) -> None:
    """Make the face in VIDEO speak AUDIO, in one process.

    The result is an MP4 file with the picture of VIDEO and the sound of AUDIO. An existing file is
    never overwritten without --force. The weights are found in models/, here or in the project;
    without them the engine `warp` draws, which needs none.
    """
    from lipsync.sources import check_output, default_output, read_source

    terminal = terminal_of(context)
    sources = read_source("video", video), read_source("audio", audio)
    target = out or default_output(sources[0], "-lipsync.mp4")
    for path in filter(None, (target, contact_sheet)):
        check_output(path, sources, may_overwrite=force)
    order = Order(*sources, target, contact_sheet, deadline_s)
    result = _draw(order, job, tools, terminal)
    terminal.result(_facts(result, contact_sheet), _rows(result, contact_sheet))


@dataclass(frozen=True, slots=True)
class Order:
    """The inputs of one job, and the files that it writes."""

    video: Source
    audio: Source
    target: Path
    contact_sheet: Path | None
    deadline_s: float | None


def _draw(order: Order, job: JobOptions, tools: ToolOptions, terminal: Terminal) -> Result:
    """Fetch, draw and write everything that `order` names."""
    from lipsync.job import load, scratch
    from lipsync.sources import fetch, fetch_others
    from musetalk_pipeline.contact_sheet import write_contact_sheet
    from musetalk_pipeline.pipeline import run
    from musetalk_pipeline.progress_bar import ProgressBar
    from musetalk_pipeline.watch import Watch

    with scratch(terminal) as folder:
        video, audio = (fetch(source, folder) for source in (order.video, order.audio))
        others = fetch_others(job.time.urls, folder)
        loaded = load(terminal, tools, job)
        with ProgressBar("frames") as bar:
            result = run(
                video,
                audio,
                order.target,
                job,
                loaded,
                others=others,
                work_dir=folder,
                watch=Watch(deadline_s=order.deadline_s),
                on_progress=lambda at: bar.show(at.stage, at.frames_done, at.frames_total or None),
            )
        if order.contact_sheet is not None:
            with terminal.working("drawing the contact sheet"):
                write_contact_sheet(
                    video, order.target, order.contact_sheet, source_of=result.source_of
                )
    return result


def _facts(result: Result, sheet: Path | None) -> dict[str, Any]:
    return {
        "status": "success",
        "output": str(result.path),
        "contact_sheet": None if sheet is None else str(sheet),
        "engine": result.engine,
        "model_version": result.model_version,
        "landmarks": result.landmarks,
        "width": result.width,
        "height": result.height,
        "fps": float(result.fps),
        "frames": result.frames,
        "frames_with_face": result.frames_with_face,
        "seconds": round(result.elapsed_s, 3),
        "stage_seconds": {name: round(s, 3) for name, s in result.stage_seconds.items()},
        "peak_gpu_mib": result.peak_memory_mib,
        "receipt": receipt_json(result.receipt),
        "warnings": list(result.warnings),
    }


def _rows(result: Result, sheet: Path | None) -> Iterator[tuple[str, str]]:
    stages = ", ".join(f"{name} {s:.2f}" for name, s in result.stage_seconds.items())
    yield "result", str(result.path)
    if sheet is not None:
        yield "contact sheet", str(sheet)
    yield "engine", f"{result.engine} {result.model_version}, landmarks {result.landmarks}"
    yield (
        "frames",
        f"{result.frames} ({result.frames_with_face} with a face), "
        f"{result.width}x{result.height}, {float(result.fps):.5g} frames/s",
    )
    rate = result.frames / result.elapsed_s
    yield "seconds", f"{result.elapsed_s:.2f} ({rate:.1f} frames/s); {stages}"
    if result.peak_memory_mib is not None:
        yield "GPU memory", f"{result.peak_memory_mib:.0f} MiB at most"
    yield "receipt", receipt_line(receipt_json(result.receipt))
    for warning in result.warnings:
        yield "warning", warning
