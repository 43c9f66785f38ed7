"""Which files the networks are loaded from, below the models folder (docs/reference.md §2).

The loaders read these and no others, and `missing_files` checks for all of them, so the choice of
an engine by its files and its start cannot disagree. This module is light to import.
"""

from __future__ import annotations

from pathlib import Path

from musetalk_pipeline.options import Version

UNET_FOLDERS: dict[Version, str] = {"v15": "musetalkV15", "v1": "musetalk"}
VAE_FOLDER, WHISPER_FOLDER, PARSER_FOLDER = "sd-vae", "whisper", "face-parse-bisent"

# Names in those folders; of several, the first that exists is read.
UNETS: dict[Version, tuple[str, ...]] = {
    "v15": ("unet.pth", "unet.safetensors"),
    "v1": ("pytorch_model.bin", "pytorch_model.safetensors"),
}
UNET_CONFIGS = ("musetalk.json", "config.json")
VAES = ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors")
WHISPERS = ("pytorch_model.bin", "model.safetensors")
PARSERS = ("79999_iter.pth", "79999_iter.safetensors")
CONFIG = "config.json"  # of the VAE and of Whisper


def missing_files(
    models: Path, version: Version, *, own_unet: bool = False, own_config: bool = False
) -> tuple[list[str], bool]:
    """Return which files of the MuseTalk engine are missing, and whether any of the others exists.

    A file is named as published, below `models`. One whose download has only begun is missing, but
    counts as one that exists. `own_unet`, `own_config`: another file is configured in its place, so
    the published one is not needed.
    """
    unet = UNET_FOLDERS[version]
    wanted = [
        *([] if own_unet else [(unet, UNETS[version])]),
        *([] if own_config else [(unet, UNET_CONFIGS)]),
        (VAE_FOLDER, VAES),
        (VAE_FOLDER, (CONFIG,)),
        (WHISPER_FOLDER, WHISPERS),
        (WHISPER_FOLDER, (CONFIG,)),
        (PARSER_FOLDER, PARSERS),
    ]
    missing, has_some = [], own_unet or own_config
    for folder, names in wanted:
        is_there = any((models / folder / name).is_file() for name in names)
        if not is_there:
            missing.append(f"{folder}/{names[0]}")
        has_some |= is_there or (models / folder / f"{names[0]}.part").is_file()
    return missing, has_some
