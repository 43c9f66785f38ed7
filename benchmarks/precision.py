"""How far float16 and bfloat16 are from float32, stage by stage.

    python benchmarks/precision.py --models models --device cuda

Every stage is fed what float32 gave, so that a difference names its stage; the last row is the
whole way from crops to faces in one precision. Inputs are seeded noise: with real weights the
figures for real faces differ, so pass `--crops` and `--features` (.npy) to use those. `--out`
writes the same figures as JSON, after each row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import project  # noqa: F401
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musetalk_pipeline.networks.precision import DTYPES, check_precision, exact_math, resolve_device
from musetalk_pipeline.networks.runner import Acceleration, place
from musetalk_pipeline.networks.unet import load_unet, unet_files
from musetalk_pipeline.networks.vae import (
    FaceDecoder,
    FaceEncoder,
    load_vae,
    scaling_factor,
    to_latents,
    to_pixels,
)


class Stages:
    """The three networks in one precision, one row at a time."""

    def __init__(
        self, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._device, self._dtype = device, dtype
        vae = options.models / "sd-vae"
        self._factor = scaling_factor(vae)
        self._encoder = self._place(FaceEncoder(load_vae(vae)))
        self._unet = self._place(load_unet(*unet_files(options.models, options.version)))
        self._decoder = self._place(FaceDecoder(load_vae(vae)))

    def latents(self, crops: Tensor) -> Tensor:
        """Return (n, 8, 32, 32) float32 from (n, 256, 256, 3) uint8 BGR."""
        return to_latents(self._rows(self._encoder, crops).float(), self._factor)

    def drawn(self, latents: Tensor, features: Tensor) -> Tensor:
        """Return (n, 4, 32, 32) float32."""
        return self._rows(self._unet, latents, features).float()

    def faces(self, drawn: Tensor) -> Tensor:
        """Return (n, 256, 256, 3) uint8 BGR."""
        return to_pixels(self._rows(self._decoder, drawn))

    def _place(self, network: nn.Module) -> nn.Module:
        return place(network, self._device, self._dtype, Acceleration())

    def _rows(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        with exact_math(self._device, self._dtype), torch.inference_mode():
            return torch.cat(
                [
                    network(*(rows[at : at + 1].to(self._device) for rows in inputs)).cpu()
                    for at in range(len(inputs[0]))
                ]
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    options = _parse(arguments)
    device = resolve_device(options.device)
    random = np.random.default_rng(0)
    crops = _load(options.crops, random.integers(0, 256, (options.frames, 256, 256, 3), np.uint8))
    features = _load(
        options.features, random.standard_normal((options.frames, 50, 384), np.float32)
    )
    exact = Stages(options, device, torch.float32)
    latents = exact.latents(crops)
    drawn = exact.drawn(latents, features)
    faces = exact.faces(drawn)
    print(f"{device}, {len(crops)} frames, {options.version}\n")
    print("| stage | dtype | mean difference | largest | of |\n|---|---|--:|--:|---|")
    rows: list[dict[str, object]] = []
    for name in options.dtype:
        half = Stages(options, device, check_precision(name, device))
        chain = half.faces(half.drawn(half.latents(crops), features))
        for stage, ours, theirs, unit in (
            ("latents", half.latents(crops), latents, "latent units"),
            ("UNet", half.drawn(latents, features), drawn, "latent units"),
            ("decoded", half.faces(drawn), faces, "levels"),
            ("crops to faces", chain, faces, "levels"),
        ):
            difference = (ours.double() - theirs.double()).abs()
            mean, largest = difference.mean().item(), difference.max().item()
            print(f"| {stage} | {name} | {mean:.3g} | {largest:.3g} | {unit} |", flush=True)
            row = {"stage": stage, "dtype": name, "mean": mean, "largest": largest, "of": unit}
            rows.append(row)
            if options.out:
                document = {"device": str(device), "torch": torch.__version__, "rows": rows}
                options.out.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _load(path: Path | None, otherwise: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(otherwise if path is None else np.load(path, allow_pickle=False))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    half = sorted(set(DTYPES) - {"float32"})
    parser.add_argument("--models", type=Path, required=True, help="weights as published")
    parser.add_argument("--version", choices=("v15", "v1"), default="v15")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", nargs="+", choices=half, default=half)
    parser.add_argument("--frames", type=int, default=4, help="frames of noise")
    parser.add_argument("--crops", type=Path, help="(n, 256, 256, 3) uint8 BGR .npy")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--features", type=Path, help="(n, 50, 384) float32 .npy")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
