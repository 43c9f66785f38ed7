"""What one process loads before its first job: the weights it finds, the engine, the detector.

Light to import: the libraries of an engine and a detector are loaded by `load_tools`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from musetalk_pipeline.engines import (
    EngineChoice,
    EngineDecision,
    decide_engine,
    make_audio_encoder,
    make_engine,
)
from musetalk_pipeline.faces import (
    DetectorName,
    PersonBox,
    Presence,
    best_landmarks,
    make_detector,
)
from musetalk_pipeline.faces.presence import INTERVAL_FRAMES
from musetalk_pipeline.option_spec import Spec
from musetalk_pipeline.options import Precision, Version

if TYPE_CHECKING:
    from musetalk_pipeline.pipeline import Tools

PROJECT = Path(__file__).resolve().parent.parent
MOST_ENCODER_THREADS = 64  # guess: a frame has too few rows for more threads


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What a process draws with. None: the best that is found, or what the machine allows."""

    engine: Annotated[
        EngineChoice,
        Spec(
            "The engine is `musetalk` or `warp`, or `auto`: `musetalk` if its weights are found, "
            "and `warp` otherwise."
        ),
    ] = "auto"
    models: Annotated[
        Path | None,
        Spec(
            "The published weights are in this folder.",
            metavar="DIR",
            default_text="models/ here, else in the project",
        ),
    ] = None
    device: Annotated[
        str, Spec("The networks run on `cpu`, `cuda`, `cuda:N` or `auto`.", metavar="DEVICE")
    ] = "auto"
    dtype: Annotated[Precision, Spec("The networks compute with this precision.")] = "float32"
    batch_size: Annotated[
        int | None,
        Spec(
            "This many frames go through the networks in one pass.",
            least=1,
            most=256,
            default_text="as the free memory allows",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Spec(
            "The encoder samples with this seed as the reference does, instead of taking the mean.",
            least=0,
            most=2**32 - 1,
        ),
    ] = None
    landmarks: Annotated[
        DetectorName | None,
        Spec("This detector finds the landmarks of faces.", default_text="the best that is found"),
    ] = None
    face_presence: Annotated[
        Presence,
        Spec("The score of the landmarks (`landmarks`) or S3FD (`s3fd`) decides what is a face."),
    ] = "landmarks"
    presence_interval: Annotated[
        int,
        Spec("S3FD examines one frame in this many.", least=1, most=100_000, metavar="FRAMES"),
    ] = INTERVAL_FRAMES
    person_box: Annotated[
        PersonBox,
        Spec(
            "`onnx` and `mmpose` search the whole frame (`frame`), or the surroundings of the "
            "largest face (`face`), which finds small faces."
        ),
    ] = "frame"
    encoder_threads: Annotated[
        int | None,
        Spec(
            "libx264 encodes with this many threads.",
            least=1,
            most=MOST_ENCODER_THREADS,
            default_text="one for each core",
        ),
    ] = None


def find_models(named: Path | None, working: Path, project: Path = PROJECT) -> Path:
    """Return the folder of the weights: the one that is named, else `models` in the `working`
    folder, which the application uses too, else that of the `project`.
    """
    if named is not None:
        return named.absolute()
    here = working / "models"
    return here if here.is_dir() else project / "models"


def decide(options: ToolOptions, version: Version, models: Path) -> EngineDecision:
    """Return the engine that draws, and why."""
    return decide_engine(options.engine, models, version)


def load_tools(
    options: ToolOptions, version: Version, models: Path, decision: EngineDecision
) -> Tools:
    """Load what `decide` decided on.

    Raises:
        ModelLoadFailed: a file, a package or the device is missing; the message says what helps.
    """
    from musetalk_pipeline.pipeline import Tools

    engine = decision.engine
    return Tools(
        detector=make_detector(
            options.landmarks or best_landmarks(engine, models),
            models,
            presence=options.face_presence,
            presence_interval=options.presence_interval,
            person_box=options.person_box,
        ),
        engine=make_engine(
            engine,
            models,
            version=version,
            device=options.device,
            precision=options.dtype,
            batch_size=options.batch_size,
            seed=options.seed,
        ),
        audio_encoder=make_audio_encoder(engine, models),
        encoder_threads=options.encoder_threads or _cores(),
    )


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)), MOST_ENCODER_THREADS)
