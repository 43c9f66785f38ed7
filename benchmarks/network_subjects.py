"""The networks that are measured, at full size: how each is made, fed and counted.

Import `project` first: this file imports the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from model_folder import UNET, VAE, WHISPER
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_pipeline.networks.parser import BiSeNet
from musetalk_pipeline.networks.unet import MouthUnet
from musetalk_pipeline.networks.vae import FaceDecoder, FaceEncoder


class WhisperFeatures(nn.Module):
    """Whisper's encoder, features only."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = WhisperEncoder(WhisperConfig(**WHISPER))

    def forward(self, mel: Tensor) -> Tensor:
        """Return (B, 1500, 384). `mel`: (B, 80, 3000)."""
        states: Tensor = self.encoder(mel.to(self.encoder.conv1.weight.dtype))[0]
        return states


@dataclass(frozen=True, slots=True)
class Subject:
    """A network, and inputs for one batch. One row is one frame, or 30 s of sound for Whisper."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    is_float32_only: bool = False


SUBJECTS = (
    Subject(
        "VAE encoder (2 images)",
        lambda: FaceEncoder(AutoencoderKL(**VAE)),
        lambda rows: (torch.randint(0, 256, (rows, 256, 256, 3), dtype=torch.uint8),),
    ),
    Subject(
        "UNet",
        lambda: MouthUnet(UNet2DConditionModel(**UNET)),
        lambda rows: (torch.randn(rows, 8, 32, 32), torch.randn(rows, 50, 384)),
    ),
    Subject(
        "VAE decoder",
        lambda: FaceDecoder(AutoencoderKL(**VAE)),
        lambda rows: (torch.randn(rows, 4, 32, 32),),
    ),
    Subject(
        "face parser",
        BiSeNet,
        lambda rows: (torch.randint(0, 256, (rows, 512, 512, 3), dtype=torch.uint8),),
        is_float32_only=True,
    ),
    Subject("Whisper encoder (30 s)", WhisperFeatures, lambda rows: (torch.randn(rows, 80, 3000),)),
)


def random_network(subject: Subject, device: torch.device) -> nn.Module:
    """Return the network with random weights of the usual spread, made on the device.

    The libraries' own initialisation takes longer than the measurement on a CPU.
    """
    with torch.device("meta"):
        network = subject.make()
    network = network.to("meta").to_empty(device=device)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                bound = math.sqrt(3 / parameter[0].numel())
                parameter.uniform_(-bound, bound)
            else:
                parameter.fill_(0.1)
        for buffer in network.buffers():
            buffer.fill_(1)  # variances of norms, for one, must be positive
    return network


def count_gflop(subject: Subject) -> float:
    """Return the GFLOP of one row: matrix products and convolutions, a multiply-add being two."""
    with torch.device("meta"):
        network, inputs = subject.make().eval(), subject.inputs(1)
    network = network.to("meta")
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(*(rows.to("meta") for rows in inputs))
    return counter.get_total_flops() / 1e9


def without_fused_attention(network: nn.Module) -> None:
    """Let attention be computed in separate steps, to see what fusing buys."""
    for module in network.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(AttnProcessor())  # type: ignore[operator]
