"""The autoencoder between faces of 256x256 pixels and latents of 32x32."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from musetalk_pipeline.networks.checkpoint import (
    find_weights,
    load_network,
    read_config,
    read_weights,
)
from musetalk_pipeline.networks.files import CONFIG, VAES

FACE_PX = 256
LATENT_SHAPE = (4, 32, 32)

_SCALING_FACTOR = 0.18215  # diffusers' default for AutoencoderKL
_SKIP_FRAMES = 256  # 8 MiB of random numbers at a time

# The published file has the mid-block attention's names of diffusers before 0.18; files saved by
# later versions have the new ones, which pass unchanged.
_NEW_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


class FaceEncoder(nn.Module):
    """Turns face crops into posteriors of their latents, lower half masked and whole."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, crops: Tensor) -> Tensor:
        """Return (B, 2, 8, 32, 32): mean and log variance, of the masked and the whole face.

        `crops`: (B, 256, 256, 3) uint8 BGR.
        """
        images = to_images(crops).flatten(0, 1)  # (2B, 3, 256, 256): the reference's order
        moments: Tensor = self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype)))
        return moments.reshape(-1, 2, *moments.shape[1:])


def to_images(crops: Tensor) -> Tensor:
    """Return (B, 2, 3, 256, 256) float32 RGB in -1..1: rows 128..255 blacked out, then whole.

    `crops`: (B, 256, 256, 3) uint8 BGR.
    """
    # Through float64, so that every level rounds as in the reference (models/vae.py:55).
    levels = (torch.arange(256, dtype=torch.float64, device=crops.device) / 255).float()
    rgb = levels[crops.flip(-1).long()].permute(0, 3, 1, 2)  # (B, 3, 256, 256)
    masked = rgb.clone()
    masked[:, :, FACE_PX // 2 :] = 0
    return (torch.stack([masked, rgb], dim=1) - 0.5) / 0.5


def to_latents(moments: Tensor, scaling_factor: float, noise: Tensor | None = None) -> Tensor:
    """Return (B, 8, 32, 32) from posteriors: their means, or samples if there is `noise`.

    `moments`: (B, 2, 8, 32, 32) of FaceEncoder. `noise`: (B, 2, 4, 32, 32), standard normal.
    """
    mean, log_variance = moments.chunk(2, dim=2)
    if noise is not None:
        # Clipped as diffusers' DiagonalGaussianDistribution does.
        mean = mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise
    return (scaling_factor * mean).flatten(1, 2)


def scaling_factor(folder: Path) -> float:
    """Return the factor between posteriors and latents; the published configuration has none."""
    return float(read_config(folder / CONFIG).get("scaling_factor", _SCALING_FACTOR))


class FaceDecoder(nn.Module):
    """Turns latents into faces."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder
        self.scaling_factor = float(vae.config.scaling_factor)

    def forward(self, latents: Tensor) -> Tensor:
        """Return (B, 3, 256, 256) RGB, about -1..1. `latents`: (B, 4, 32, 32)."""
        scaled = (1 / self.scaling_factor) * latents
        image: Tensor = self.decoder(
            self.post_quant_conv(scaled.to(self.post_quant_conv.weight.dtype))
        )
        return image


def to_pixels(image: Tensor) -> Tensor:
    """Return (B, 256, 256, 3) uint8 BGR from a decoded image, rounded half to even."""
    unit = (image / 2 + 0.5).clamp(0, 1).float()
    return (unit * 255).round().to(torch.uint8).flip(1).permute(0, 2, 3, 1).contiguous()


def seeded_noise(seed: int, start: int, count: int) -> Tensor:
    """Return the (count, 2, 4, 32, 32) normal numbers of source frames `start`… after `seed`.

    Equal to what the reference draws after `torch.manual_seed(seed)`: one (1, 4, 32, 32) per
    encode, masked then whole, frame after frame. Here numbers belong to frame indices. The
    reference draws none for a frame without a face, so the two sequences differ after one.
    """
    generator = torch.Generator().manual_seed(seed)
    for skipped in range(0, start, _SKIP_FRAMES):
        torch.randn(min(_SKIP_FRAMES, start - skipped), 2, *LATENT_SHAPE, generator=generator)
    return torch.randn(count, 2, *LATENT_SHAPE, generator=generator)


def load_vae(folder: Path) -> AutoencoderKL:
    """Read the autoencoder in float32 from its published folder.

    Raises:
        ModelLoadFailed: a file is missing or damaged, or does not fit the configuration.
    """
    weights = find_weights(folder, *VAES)
    settings = {
        key: value for key, value in read_config(folder / CONFIG).items() if not key.startswith("_")
    }
    return load_network(lambda: AutoencoderKL(**settings), read_weights(weights), rename=_new_name)


def _new_name(key: str) -> str:
    if ".attentions." not in key:
        return key
    for old, new in _NEW_NAMES.items():
        key = key.replace(old, new)
    return key
