"""Drawing mouths: engines behind one interface, chosen once by `make_engine`.

Light to import: the libraries of an engine are loaded when it is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from musetalk_pipeline.engines.engine import Engine, Listener
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.options import Version

__all__ = [
    "Engine",
    "EngineChoice",
    "EngineName",
    "Listener",
    "choose_engine",
    "has_weights",
    "make_engine",
    "make_listener",
]

EngineName = Literal["musetalk", "warp"]
EngineChoice = Literal["auto", "musetalk", "warp"]
Precision = Literal["float32", "float16", "bfloat16"]

_UNETS: dict[Version, tuple[str, ...]] = {
    "v15": ("musetalkV15/unet.pth", "musetalkV15/unet.safetensors"),
    "v1": ("musetalk/pytorch_model.bin", "musetalk/pytorch_model.safetensors"),
}
_OTHERS = ("sd-vae", "whisper", "face-parse-bisent")


def choose_engine(
    choice: EngineChoice, models_dir: Path | None, version: Version = "v15"
) -> EngineName:
    """Return the engine that `choice` means on this machine.

    `auto` is `musetalk` where its weights are found, else `warp`. Whoever has the weights wants
    them used, on a CPU too, where a clip of 10 s takes 15 minutes (musetalk_reference §6.3).
    """
    if choice != "auto":
        return choice
    found = models_dir is not None and has_weights(models_dir, version)
    return "musetalk" if found else "warp"


def has_weights(models_dir: Path, version: Version = "v15") -> bool:
    """Tell whether the files of the MuseTalk engine are there; whether they are sound is not
    looked at.
    """
    has_unet = any((models_dir / name).is_file() for name in _UNETS[version])
    return has_unet and all((models_dir / name).is_dir() for name in _OTHERS)


def make_engine(
    name: EngineName,
    models_dir: Path | None = None,
    *,
    version: Version = "v15",
    device: str = "auto",
    precision: Precision = "float32",
    batch_size: int | None = None,
    gpu_share: float = 1.0,
    seed: int | None = None,
    threads: int | None = None,
    unet_weights: Path | None = None,
    unet_config: Path | None = None,
) -> Engine:
    """Load the engine `name`; `warp` needs nothing, and none of the other arguments, which are
    those of `MuseTalkOptions`.

    Raises:
        ModelLoadFailed: a file or the device is missing; the message names what helps.
    """
    if name == "warp":
        from musetalk_pipeline.engines.warp import WarpEngine

        return WarpEngine()
    from musetalk_pipeline.engines.musetalk import MuseTalkEngine, MuseTalkOptions

    options = MuseTalkOptions(
        version=version,
        device=device,
        precision=precision,
        batch_size=batch_size,
        gpu_share=gpu_share,
        seed=seed,
        threads=threads,
        unet_weights=unet_weights,
        unet_config=unet_config,
    )
    return MuseTalkEngine(_models(models_dir), options)


def make_listener(name: EngineName, models_dir: Path | None = None) -> Listener:
    """Load what hears for the engine `name`; always on the CPU.

    Raises:
        ModelLoadFailed: Whisper's files are missing or damaged.
    """
    if name == "warp":
        from musetalk_pipeline.engines.warp import WarpListener

        return WarpListener()
    from musetalk_pipeline.audio import WhisperListener

    return WhisperListener(_models(models_dir))


def _models(models_dir: Path | None) -> Path:
    if models_dir is None:
        raise ModelLoadFailed(
            "The MuseTalk engine needs downloaded weights, but no models folder is given. Fetch "
            "them with `python -m musetalk_pipeline.weights fetch --models DIR` and name that "
            "folder, or choose the engine `warp`."
        )
    return models_dir
