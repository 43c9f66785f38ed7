"""Seeded random weights in the files, keys and shapes of the published ones.

    python benchmarks/random_weights.py DIR [--size full|small] [--device auto|cpu|cuda] [--seed 0]

For measuring speed, memory and precision where the published weights are not at hand: `full` takes
3.9 GB and costs what they cost, `small` loads in a second. The mouths that they draw are noise.
Activations stay near the size of 1, so that half precision does not overflow.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import project  # noqa: F401
import torch
from model_folder import FULL, SMALL, write_models
from torch import Tensor, nn


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files and say how long that took."""
    options = _parse(arguments)
    started = time.monotonic()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    write_weights(options.folder, options.size, device, options.seed)
    files = [path for path in options.folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(
        json.dumps(
            {
                "folder": str(options.folder),
                "size": options.size,
                "device": device,
                "mib": round(size / 2**20),
                "wall_s": round(time.monotonic() - started, 2),
                "cpu_s": round(time.process_time(), 2),
            }
        )
    )
    return 0


def write_weights(models: Path, size: str, device: str, seed: int) -> None:
    """Write what MuseTalk v1.5 is loaded from below `models`; `size` is "full" or "small"."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = SMALL if size == "small" else FULL
    write_models(models, sizes, lambda make: _random(make, generator))


def _random(make: Callable[[], nn.Module], generator: torch.Generator) -> dict[str, Tensor]:
    """Return the state of a network with random weights, made on the generator's device.

    Matrices and convolutions keep the variance of what they are given; scales are about 1.
    """
    with torch.device("meta"):
        state = make().state_dict()
    return {key: _values(key, tensor, generator) for key, tensor in state.items()}


def _values(key: str, wanted: Tensor, generator: torch.Generator) -> Tensor:
    if not wanted.dtype.is_floating_point:
        return torch.zeros(wanted.shape, dtype=wanted.dtype)
    normal = torch.randn(wanted.shape, generator=generator, device=generator.device)
    if key.endswith("running_var"):
        normal = 1 + 0.1 * normal.abs()
    elif wanted.ndim >= 2:
        normal = normal / math.sqrt(math.prod(wanted.shape[1:]))
    elif key.endswith("weight"):
        normal = 1 + 0.1 * normal
    else:
        normal = 0.05 * normal
    return normal.cpu()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the models folder to write")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--device", default="auto", help="that makes the numbers: auto, cpu, cuda")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
