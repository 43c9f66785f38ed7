"""Small networks with random weights, in files named and keyed like the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_pipeline.networks.parser import BiSeNet

UNET = {
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [8, 8, 8, 8],
    "cross_attention_dim": 384,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 8,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE = {
    "act_fn": "silu",
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
WHISPER = {
    "d_model": 384,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 32,
    "encoder_layers": 4,
    "max_source_positions": 1500,
    "model_type": "whisper",
    "num_mel_bins": 80,
    "torch_dtype": "float32",
    "vocab_size": 64,
    "pad_token_id": 1,
}
OLD_NAMES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that tests must not write to."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    for name, file in (("musetalk", "pytorch_model.bin"), ("musetalkV15", "unet.pth")):
        save(folder / name / file, UNet2DConditionModel(**UNET).state_dict())
        save_config(
            folder / name / "musetalk.json", {"_class_name": "UNet2DConditionModel", **UNET}
        )
    vae = AutoencoderKL(**VAE).state_dict()
    save(folder / "sd-vae" / "diffusion_pytorch_model.bin", old_names(vae))
    save_config(folder / "sd-vae" / "config.json", {"_class_name": "AutoencoderKL", **VAE})
    settings = {k: v for k, v in WHISPER.items() if k not in ("model_type", "torch_dtype")}
    encoder = WhisperEncoder(WhisperConfig(**settings)).state_dict()
    whisper = {f"model.encoder.{key}": tensor for key, tensor in encoder.items()}
    whisper["model.decoder.embed_tokens.weight"] = torch.zeros(64, 384)
    save(folder / "whisper" / "pytorch_model.bin", whisper)
    save_config(folder / "whisper" / "config.json", WHISPER)
    parser = BiSeNet().state_dict()
    parser["conv_out16.conv_out.weight"] = torch.zeros(19, 64, 1, 1)
    parser["conv_out32.conv_out.weight"] = torch.zeros(19, 64, 1, 1)
    save(folder / "face-parse-bisent" / "79999_iter.pth", parser)
    return folder


def old_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """Rename the autoencoder's attention as the published file has it."""
    renamed = {}
    for key, tensor in tensors.items():
        for new, old in OLD_NAMES.items():
            key = key.replace(new, old) if ".attentions." in key else key
        renamed[key] = tensor
    return renamed


def save(path: Path, tensors: dict[str, Any]) -> None:
    """Write a checkpoint as torch does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def save_config(path: Path, settings: dict[str, Any]) -> None:
    """Write a network's configuration."""
    path.write_text(json.dumps(settings))
