"""Whether the weights that a configuration needs are there, and which command fetches them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from musetalk_pipeline.faces.dwpose import WEIGHTS
from musetalk_pipeline.networks.files import missing_files
from musetalk_pipeline.weights.manifest import published
from serve_app.config.config_file import Place
from serve_app.config.environment import Environment
from serve_app.config.settings import AppArgs


def weight_faults(args: AppArgs, env: Environment) -> Iterator[tuple[Place, str]]:
    for name, path in (
        ("MUSETALK_UNET_MODEL_PATH", env.unet_path),
        ("MUSETALK_UNET_CONFIG", env.unet_config),
    ):
        if path is not None and not path.is_file():
            yield ("engine",), f"{name} names {path}, and there is no such file"
    if args.engine == "musetalk":
        missing, _ = missing_files(
            args.models_dir,
            args.version,
            own_unet=env.unet_path is not None,
            own_config=env.unet_config is not None,
        )
        if missing:
            yield (
                ("engine",),
                f"`engine: musetalk` needs weights, and {args.models_dir} lacks "
                f"{', '.join(missing)}; {_fetch(args)} fetches them, and `engine: warp` needs none",
            )
    yield from _detector_faults(args)


def _fetch(args: AppArgs, *options: str) -> str:
    """Return the command that fetches the published weights to `models_dir`."""
    if args.version != "v15":
        options = (*options, "--version", args.version)
    if args.models_dir != Path("models"):
        options = (*options, "--models", str(args.models_dir))
    return f"`{' '.join(('lipsync weights fetch', *options))}`"


def _detector_faults(args: AppArgs) -> Iterator[tuple[Place, str]]:
    wanted: list[tuple[str, str, Path, str]] = []
    if args.landmarks == "mmpose":
        wanted.append(("landmarks", "mmpose", WEIGHTS, f"{_fetch(args)} fetches it"))
        if importlib.util.find_spec("mmpose") is None:
            yield (
                ("landmarks",),
                "`landmarks: mmpose` needs the mmpose stack: `make mm` installs it",
            )
    elif args.landmarks == "onnx":
        source, target = (args.models_dir / WEIGHTS.with_suffix(end) for end in (".pth", ".onnx"))
        command = f"{sys.executable} -m musetalk_pipeline.faces.onnx export {source} {target}"
        export = f"`{command}` makes it"
        wanted.append(("landmarks", "onnx", WEIGHTS.with_suffix(".onnx"), export))
    if args.face_presence == "s3fd":
        fetch = f"{_fetch(args, '--s3fd')} fetches it"
        s3fd = Path(published(args.version, with_s3fd=True)[-1].path)
        wanted.append(("face_presence", "s3fd", s3fd, fetch))
    for key, value, path, remedy in wanted:
        if not (args.models_dir / path).is_file():
            yield (key,), f"`{key}: {value}` needs {args.models_dir / path}; {remedy}"
