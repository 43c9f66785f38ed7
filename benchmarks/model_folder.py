"""The configurations of the published networks, and a models folder in the published layout.

Benchmarks measure networks of these sizes; the tests load small ones from such a folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_pipeline.networks.parser import BiSeNet

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
_FEW = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}

# The published autoencoder has the names of older releases of diffusers.
OLD_NAMES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

StateOf = Callable[[Callable[[], nn.Module]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Configurations:
    """What the networks are made with. The published sizes, unless others are given."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    whisper: Mapping[str, Any]


FULL = Configurations(UNET, VAE, WHISPER)
# The same networks with few channels: they load in a second.
SMALL = Configurations(
    UNET | _FEW | {"attention_head_dim": 2}, VAE | _FEW, WHISPER | {"encoder_ffn_dim": 32}
)


def write_models(models: Path, sizes: Configurations, state_of: StateOf) -> None:
    """Write what MuseTalk v1.5 is loaded from below `models`.

    `state_of`: returns the state of a network that is given by its constructor.
    """
    write_unet(models / "musetalkV15" / "unet.pth", sizes, state_of)

    folder = models / "sd-vae"
    tensors = state_of(lambda: AutoencoderKL(**sizes.vae))
    save(folder / "diffusion_pytorch_model.bin", _old_names(tensors))
    _write_config(folder / "config.json", {"_class_name": "AutoencoderKL", **sizes.vae})

    folder = models / "whisper"
    tensors = state_of(lambda: WhisperEncoder(WhisperConfig(**sizes.whisper)))
    encoder = {f"model.encoder.{key}": tensor for key, tensor in tensors.items()}
    save(folder / "pytorch_model.bin", encoder)
    _write_config(folder / "config.json", {"model_type": "whisper", **sizes.whisper})

    save(models / "face-parse-bisent" / "79999_iter.pth", state_of(BiSeNet))


def write_unet(path: Path, sizes: Configurations, state_of: StateOf) -> None:
    """Write the UNet of one version, with its configuration next to it."""
    save(path, state_of(lambda: UNet2DConditionModel(**sizes.unet)))
    described = {"_class_name": "UNet2DConditionModel", **sizes.unet}
    _write_config(path.with_name("musetalk.json"), described)


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint as torch does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def _old_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in tensors.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(new, old) if ".attentions." in key else key
        renamed[key] = tensor
    return renamed


def _write_config(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")
