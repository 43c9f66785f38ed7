"""Which tools of this machine an avatar depends on, with the digests of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from musetalk_pipeline.avatars.identity import AvatarTools
from musetalk_pipeline.engines import EngineName, Precision, engine_version
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.faces import DetectorName, PersonBox, Presence
from musetalk_pipeline.networks.files import CONFIG, PARSER_FOLDER, PARSERS, VAE_FOLDER, VAES
from musetalk_pipeline.options import Version


def describe_tools(
    engine: EngineName,
    landmarks: DetectorName,
    models_dir: Path,
    *,
    version: Version,
    presence: Presence,
    presence_interval: int,
    person_box: PersonBox,
    seed: int | None,
    precisions: Sequence[Precision],
) -> AvatarTools:
    """Describe the tools that `make_engine` and `make_detector` load with these choices.

    It reads up to 0.9 GB of weights. The UNet and Whisper are not among them, because they act on
    sound.

    Raises:
        ModelLoadFailed: one of the files is not on this machine.
    """
    has_networks = engine == "musetalk"
    files = {
        **_digests(models_dir, _engine_files(engine, models_dir)),
        **_digests(models_dir, _detector_files(landmarks, presence)),
    }
    if landmarks == "mesh" or person_box == "face":
        files["mediapipe"] = metadata.version("mediapipe")  # its networks come with the package
    return AvatarTools(
        engine=engine,
        model_version=engine_version(engine, version),
        landmarks=landmarks,
        face_presence=presence,
        presence_interval=presence_interval if presence == "s3fd" else None,
        person_box=person_box if landmarks != "mesh" else "frame",
        seed=seed if has_networks else None,
        precisions=tuple(sorted(set(precisions))) if has_networks else (),
        files=tuple(sorted(files.items())),
    )


def _engine_files(engine: EngineName, models_dir: Path) -> Iterator[Path]:
    """Yield what the engine encodes a block with, as paths below the models folder."""
    if engine == "warp":
        return
    for folder, names in ((VAE_FOLDER, VAES), (VAE_FOLDER, (CONFIG,)), (PARSER_FOLDER, PARSERS)):
        found = [name for name in names if (models_dir / folder / name).is_file()]
        yield Path(folder, (found or names)[0])  # the loaders take the first that exists


def _detector_files(landmarks: DetectorName, presence: Presence) -> Iterator[Path]:
    if landmarks == "onnx":
        from musetalk_pipeline.faces.onnx import MODEL

        yield MODEL
    if landmarks == "mmpose":
        from musetalk_pipeline.faces.dwpose import WEIGHTS

        yield WEIGHTS
    if presence == "s3fd":
        from musetalk_pipeline.networks.s3fd import FILE

        yield FILE


def _digests(models_dir: Path, paths: Iterator[Path]) -> dict[str, str]:
    digests = {}
    for path in paths:
        try:
            with (models_dir / path).open("rb") as file:
                digests[path.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            raise ModelLoadFailed(f"{models_dir / path} cannot be read.", file=str(path)) from exc
    return digests
