"""`lipsync bench`: one fixed job, to compare machines by."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsync.flags import Json, takes_options
from lipsync.terminal import terminal_of
from musetalk_pipeline.loading import ToolOptions
from musetalk_pipeline.options import JobOptions

if TYPE_CHECKING:
    from musetalk_pipeline.pipeline import Result, Tools

RATE = 16_000
HOUR_S, MINUTE_S = 3600.0, 60.0
WARM_UP_S = 1.0


@takes_options
def bench(
    context: typer.Context,
    seconds: Annotated[
        float, typer.Option(min=1.0, max=600.0, help="The length of the result, in seconds.")
    ] = 20.0,
    dollars_per_hour: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="USD", help="What the machine costs, to price a minute."),
    ] = None,
    json: Json = False,
    *,
    job: JobOptions,
    tools: ToolOptions,
) -> None:
    """Do one fixed job, and print what this machine needed for it.

    The input is made on the spot, from a face in the public domain and a sound like speech, at
    720x720 and 25 frames a second. A short job before it loads what only the first one loads; it
    does not count. With --json the last line is one JSON object.
    """
    from lipsync.job import load, scratch

    terminal = terminal_of(context)
    with scratch(terminal) as folder:
        loaded = load(terminal, tools, job)
        _draw(folder, WARM_UP_S, job, loaded)
        with terminal.working("drawing"):
            result = _draw(folder, seconds, job, loaded)
    facts = _facts(result, dollars_per_hour)
    terminal.result(facts, [(name, str(value)) for name, value in facts.items()])


def _draw(folder: Path, seconds: float, job: JobOptions, tools: Tools) -> Result:
    from demo.media import demo_video
    from musetalk_pipeline.pipeline import run

    speech = folder / "speech.wav"
    write_speech(speech, seconds)
    return run(
        demo_video(folder), speech, folder / "result.mp4", job, tools, work_dir=folder,
        on_progress=lambda at: None,
    )  # fmt: skip


def write_speech(path: Path, seconds: float) -> None:
    """Write a buzz that swells and ends like syllables do: mono, 16 kHz, 16 bits."""
    import numpy as np

    at_s = np.arange(round(seconds * RATE)) / RATE
    buzz = np.sign(np.sin(2 * np.pi * 120 * at_s)) * np.clip(np.sin(2 * np.pi * 1.7 * at_s), 0, 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((buzz * 9000).astype("<i2").tobytes())


def _facts(result: Result, usd_per_hour: float | None) -> dict[str, Any]:
    from serve_app.config.card_checks import installed_build, read_cards

    cards, build = read_cards(), installed_build()
    minutes = result.frames / float(result.fps) / MINUTE_S
    usd = None if usd_per_hour is None else result.elapsed_s / HOUR_S * usd_per_hour
    return {
        "gpu": cards[0].name if cards else None,
        "driver": cards[0].driver if cards else None,
        "torch_build": "cpu" if build is None else build.name,
        "engine": result.engine,
        "model_version": result.model_version,
        "landmarks": result.landmarks,
        "frames": result.frames,
        "seconds": round(result.elapsed_s, 3),
        "frames_per_s": round(result.frames / result.elapsed_s, 2),
        "stage_seconds": {name: round(s, 3) for name, s in result.stage_seconds.items()},
        "peak_vram_mib": result.peak_memory_mib,
        "dollars_per_hour": usd_per_hour,
        "dollars_per_finished_minute": None if usd is None else round(usd / minutes, 5),
    }
