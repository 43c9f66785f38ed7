"""The UNet that moves the mouth: one pass at timestep 0, driven by 200 ms of Whisper features."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from musetalk_pipeline.networks.checkpoint import (
    find_weights,
    load_network,
    read_config,
    read_weights,
)
from musetalk_pipeline.networks.files import UNET_CONFIGS, UNET_FOLDERS, UNETS
from musetalk_pipeline.options import Version

CONTEXT_ROWS = 50  # 10 steps of 20 ms, 5 Whisper layers each; more with longer audio paddings
LONGEST_CONTEXT = 500  # rows that positions are made for: paddings of 49 frames together
CONTEXT_WIDTH = 384  # Whisper-tiny's


class MouthUnet(nn.Module):
    """Turns latents and speech into latents of the speaking face."""

    timestep: Tensor
    positions: Tensor

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("timestep", torch.zeros(1, dtype=torch.int64), persistent=False)
        self.register_buffer("positions", positional_encoding(), persistent=False)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """Return (B, 4, 32, 32) in the network's precision.

        `latents`: (B, 8, 32, 32), masked half first, then reference. `context`: (B, 50, 384),
        Whisper windows without positions; any number of rows up to 500.
        """
        dtype = self.positions.dtype
        speech = context.to(dtype) + self.positions[:, : context.shape[1]]
        drawn: Tensor = self.unet(
            latents.to(dtype), self.timestep, encoder_hidden_states=speech, return_dict=False
        )[0]
        return drawn


def positional_encoding() -> Tensor:
    """Return the (1, LONGEST_CONTEXT, CONTEXT_WIDTH) float32 sinusoids, added to every window.

    Base 10000, sine on even and cosine on odd columns (reference: models/unet.py).
    """
    rows, width = LONGEST_CONTEXT, CONTEXT_WIDTH
    position = torch.arange(rows, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    table = torch.zeros(1, rows, width)
    table[0, :, 0::2] = torch.sin(position * rate)
    table[0, :, 1::2] = torch.cos(position * rate)
    return table


def unet_files(
    models: Path, version: Version, *, weights: Path | None = None, config: Path | None = None
) -> tuple[Path, Path]:
    """Return the weight file and the configuration of `version` in a models folder.

    `weights`, `config`: a file that is used in place of the published one, which is then not
    needed.

    Raises:
        ModelLoadFailed: one of them is missing. Fetch the weights.
    """
    folder = models / UNET_FOLDERS[version]
    return (
        weights or find_weights(folder, *UNETS[version]),
        config or find_weights(folder, *UNET_CONFIGS),
    )


def load_unet(weights: Path, config: Path) -> MouthUnet:
    """Read the UNet in float32.

    Raises:
        ModelLoadFailed: a file is damaged, or does not fit the other.
    """
    settings = {key: value for key, value in read_config(config).items() if not key.startswith("_")}
    return MouthUnet(
        load_network(lambda: UNet2DConditionModel(**settings), read_weights(weights))
    ).eval()
