"""`lipsync preview VIDEO AUDIO`: one composited frame as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsync.flags import Audio, Force, Json, Video, takes_options
from lipsync.terminal import terminal_of
from musetalk_pipeline.loading import ToolOptions
from musetalk_pipeline.options import JobOptions


@takes_options
def preview(
    context: typer.Context,
    video: Video,
    audio: Audio,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PNG",
            help="Write the picture to this file. Default: VIDEO-preview.png next to the video.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    *,
    job: JobOptions,
    tools: ToolOptions,
) -> None:
    """Draw one frame of the result as a PNG, with the box of the face.

    The frame is the first of a few with a face, drawn with the loudest sound of the first segment.
    The green box is that of the face, and the amber one is the crop that is blended. All options
    of `lipsync make` are accepted, so that they can be tried. The faces of the frame are printed as
    `--face` takes them, the largest first.
    """
    from lipsync.job import load, scratch
    from lipsync.sources import check_output, default_output, fetch, fetch_others, read_source
    from musetalk_pipeline.preview import make_preview

    terminal = terminal_of(context)
    sources = read_source("video", video), read_source("audio", audio)
    target = out or default_output(sources[0], "-preview.png")
    check_output(target, sources, may_overwrite=force)
    with scratch(terminal) as folder:
        video_file, audio_file = (fetch(source, folder) for source in sources)
        others = fetch_others(job.time.urls, folder)
        loaded = load(terminal, tools, job)
        with terminal.working("drawing one frame"):
            made = make_preview(video_file, audio_file, job, loaded, others=others)
        target.write_bytes(made.png())
    height, width = made.frame.shape[:2]
    faces = [
        f"box:{box.x0},{box.y0},{box.width},{box.height}@{made.source_frame}"
        for box in made.visible
    ]
    facts = {"source_frame": made.source_frame, "width": width, "height": height, "faces": faces}
    rows = [("preview", str(target)), ("source frame", str(made.source_frame))]
    terminal.result(
        {"status": "success", "output": str(target), **facts},
        [*rows, *(("face", face) for face in faces)],
    )
