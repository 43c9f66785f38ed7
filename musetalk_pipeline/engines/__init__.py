"""Drawing mouths: engines behind one interface, chosen once by `make_engine`.

It is light to import: the libraries of an engine are loaded when it is made.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from musetalk_pipeline.engines.interface import AudioEncoder, Engine
from musetalk_pipeline.engines.warp import version as warp_version
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.networks.files import missing_files
from musetalk_pipeline.options import Precision, Speedup, Version

__all__ = [
    "AudioEncoder",
    "Engine",
    "EngineChoice",
    "EngineDecision",
    "EngineName",
    "Precision",
    "choose_engine",
    "decide_engine",
    "engine_version",
    "make_audio_encoder",
    "make_engine",
]

EngineName = Literal["musetalk", "warp"]
EngineChoice = Literal["auto", EngineName]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineDecision:
    """Which engine draws. `reason` completes the sentence "the engine is …, because …"."""

    engine: EngineName
    reason: str


def choose_engine(
    choice: EngineChoice,
    models_dir: Path | None,
    version: Version = "v15",
    *,
    unet_weights: Path | None = None,
    unet_config: Path | None = None,
) -> EngineName:
    """Return the engine that `choice` means on this machine; see `decide_engine`."""
    decision = decide_engine(
        choice, models_dir, version, unet_weights=unet_weights, unet_config=unet_config
    )
    return decision.engine


def decide_engine(
    choice: EngineChoice,
    models_dir: Path | None,
    version: Version = "v15",
    *,
    unet_weights: Path | None = None,
    unet_config: Path | None = None,
) -> EngineDecision:
    """Decide which engine `choice` means on this machine, and why.

    `auto` is `musetalk` if every file of it is found, else `warp`; the files' contents are not
    checked. Users who have the weights expect them to be used, even on a CPU, where a clip of 10 s
    takes 15 minutes (docs/reference.md §6.3). If only some are found, a warning names the rest.
    `unet_weights`, `unet_config`: files that replace those in the models folder.
    """
    if choice != "auto":
        return EngineDecision(choice, "it was requested")
    if models_dir is None:
        return EngineDecision("warp", "no models folder is given")
    missing, has_some = missing_files(
        models_dir,
        version,
        own_unet=unet_weights is not None,
        own_config=unet_config is not None,
    )
    if not missing:
        return EngineDecision("musetalk", f"all of its files are in {models_dir}")
    if has_some:
        logger.warning(
            "The MuseTalk engine is not used, because %s is missing in %s. Fetch it with "
            "`lipsync weights fetch --version %s --models %s`.",
            ", ".join(missing),
            models_dir,
            version,
            models_dir,
        )
        are = "is" if len(missing) == 1 else "are"
        return EngineDecision("warp", f"{', '.join(missing)} {are} missing in {models_dir}")
    return EngineDecision("warp", f"none of MuseTalk's files is in {models_dir}")


def engine_version(name: EngineName, version: Version) -> str:
    """Return the `model_version` of the engine `name` without loading it. `version`: MuseTalk's."""
    return version if name == "musetalk" else warp_version.MODEL_VERSION


def make_engine(
    name: EngineName,
    models_dir: Path | None = None,
    *,
    version: Version = "v15",
    device: str = "auto",
    precision: Precision = "float32",
    batch_size: int | None = None,
    gpu_share: float = 1.0,
    speedup: Speedup = "none",
    seed: int | None = None,
    threads: int | None = None,
    unet_weights: Path | None = None,
    unet_config: Path | None = None,
) -> Engine:
    """Load the engine `name`. `warp` needs no weights and none of the other arguments.

    They are those of `MuseTalkOptions`. `speedup`: acceleration on a GPU; see `Acceleration`.

    Raises:
        ModelLoadFailed: a file or the device is missing; the message names what helps.
    """
    if name == "warp":
        from musetalk_pipeline.engines.warp.engine import WarpEngine

        return WarpEngine()
    from musetalk_pipeline.engines.musetalk.engine import MuseTalkEngine, MuseTalkOptions
    from musetalk_pipeline.networks.runner import Acceleration

    options = MuseTalkOptions(
        version=version,
        device=device,
        precision=precision,
        batch_size=batch_size,
        gpu_share=gpu_share,
        acceleration=Acceleration.of(speedup),
        seed=seed,
        threads=threads,
        unet_weights=unet_weights,
        unet_config=unet_config,
    )
    return MuseTalkEngine(_models(models_dir), options)


def make_audio_encoder(
    name: EngineName, models_dir: Path | None = None, jobs: int = 1
) -> AudioEncoder:
    """Load the audio encoder of the engine `name`, which always runs on the CPU.

    `jobs`: how many it serves at the same time.

    Raises:
        ModelLoadFailed: Whisper's files are missing or damaged.
    """
    if name == "warp":
        from musetalk_pipeline.engines.warp.engine import WarpAudioEncoder

        return WarpAudioEncoder(jobs)
    from musetalk_pipeline.engines.musetalk.audio_encoder import WhisperAudioEncoder

    return WhisperAudioEncoder(_models(models_dir), jobs=jobs)


def _models(models_dir: Path | None) -> Path:
    if models_dir is None:
        raise ModelLoadFailed(
            "The MuseTalk engine needs downloaded weights, but no models folder is given. Fetch "
            "them with `lipsync weights fetch --models DIR` and name that folder, or choose the "
            "engine `warp`."
        )
    return models_dir
