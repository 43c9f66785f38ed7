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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import project  # noqa: F401
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_pipeline.networks.parser import BiSeNet

# The published configurations, and what `small` changes in them.
UNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 384,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 8,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
WHISPER: dict[str, Any] = {
    "d_model": 384,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "encoder_layers": 4,
    "max_source_positions": 1500,
    "num_mel_bins": 80,
    "pad_token_id": 50257,
    "vocab_size": 51865,
}
SMALL = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
SMALL_UNET = SMALL | {"attention_head_dim": 2}
SMALL_WHISPER = {"encoder_ffn_dim": 32}

# The published autoencoder has the names of older releases of diffusers.
OLD_NAMES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


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
    is_small = size == "small"
    unet = UNET | (SMALL_UNET if is_small else {})
    vae = VAE | (SMALL if is_small else {})
    whisper = WHISPER | (SMALL_WHISPER if is_small else {})
    generator = torch.Generator(device).manual_seed(seed)

    folder = models / "musetalkV15"
    _save(folder / "unet.pth", _random(lambda: UNet2DConditionModel(**unet), generator))
    _write_config(folder / "musetalk.json", {"_class_name": "UNet2DConditionModel", **unet})

    folder = models / "sd-vae"
    tensors = _random(lambda: AutoencoderKL(**vae), generator)
    _save(folder / "diffusion_pytorch_model.bin", _old_names(tensors))
    _write_config(folder / "config.json", {"_class_name": "AutoencoderKL", **vae})

    folder = models / "whisper"
    tensors = _random(lambda: WhisperEncoder(WhisperConfig(**whisper)), generator)
    encoder = {f"model.encoder.{key}": tensor for key, tensor in tensors.items()}
    _save(folder / "pytorch_model.bin", encoder)
    _write_config(folder / "config.json", {"model_type": "whisper", **whisper})

    _save(models / "face-parse-bisent" / "79999_iter.pth", _random(BiSeNet, generator))


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


def _old_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in tensors.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(new, old) if ".attentions." in key else key
        renamed[key] = tensor
    return renamed


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(tensors), path)


def _write_config(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")


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
