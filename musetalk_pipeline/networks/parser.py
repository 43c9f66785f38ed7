"""BiSeNet, which assigns each pixel to one of 19 parts of a face.

A ResNet-18 context path with two attention-refined scales, a fusion module and a head. Module
names are those of the published `79999_iter.pth`. Its two auxiliary heads are for training only, so
their keys are accepted and not loaded (they do not change any label).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musetalk_pipeline.networks.checkpoint import find_weights, load_network, read_weights
from musetalk_pipeline.networks.files import PARSERS

PARSE_PX = 512
CLASSES = 19

_AUXILIARY_HEADS = ("conv_out16.", "conv_out32.")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class _ConvNormRelu(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        change = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out: Tensor = F.relu(self.downsample(x) + change)
        return out


def _residual_pair(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _ResidualBlock(channels_in, channels_out, stride),
        _ResidualBlock(channels_out, channels_out, 1),
    )


class _ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _residual_pair(64, 64, 1)
        self.layer2 = _residual_pair(64, 128, 2)
        self.layer3 = _residual_pair(128, 256, 2)
        self.layer4 = _residual_pair(256, 512, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features at 1/8, 1/16 and 1/32 of the size."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        at_8 = self.layer2(self.layer1(x))
        at_16 = self.layer3(at_8)
        return at_8, at_16, self.layer4(at_16)


class _AttentionRefinement(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = _ConvNormRelu(channels_in, channels_out)
        self.conv_atten = nn.Conv2d(channels_out, channels_out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        pooled = features.mean((2, 3), keepdim=True)
        weight: Tensor = self.bn_atten(self.conv_atten(pooled)).sigmoid()
        refined: Tensor = features * weight
        return refined


class _ContextPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = _ResNet18()
        self.arm16 = _AttentionRefinement(256, 128)
        self.arm32 = _AttentionRefinement(512, 128)
        self.conv_head32 = _ConvNormRelu(128, 128)
        self.conv_head16 = _ConvNormRelu(128, 128)
        self.conv_avg = _ConvNormRelu(512, 128, kernel=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, 128, H/8, W/8) twice: plain features, and features with global context."""
        at_8, at_16, at_32 = self.resnet(x)
        whole = self.conv_avg(at_32.mean((2, 3), keepdim=True))  # (B, 128, 1, 1)
        context = self.conv_head32(F.interpolate(self.arm32(at_32) + whole, at_16.shape[2:]))
        context = self.conv_head16(F.interpolate(self.arm16(at_16) + context, at_8.shape[2:]))
        return at_8, context


class _FeatureFusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convblk = _ConvNormRelu(256, 256, kernel=1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        features = self.convblk(torch.cat([detail, context], dim=1))
        pooled = features.mean((2, 3), keepdim=True)
        weight = self.conv2(F.relu(self.conv1(pooled))).sigmoid()
        fused: Tensor = features * weight + features
        return fused


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _ConvNormRelu(256, 256)
        self.conv_out = nn.Conv2d(256, CLASSES, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv_out(self.conv(x))
        return logits


class BiSeNet(nn.Module):
    """The parser, as trained on CelebAMask-HQ."""

    def __init__(self) -> None:
        super().__init__()
        self.cp = _ContextPath()
        self.ffm = _FeatureFusion()
        self.conv_out = _Head()

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (B, 19, 512, 512) float32 logits. `pictures`: (B, 512, 512, 3) uint8 RGB."""
        mean, std = (_planes(values, pictures.device) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        x = (pictures.permute(0, 3, 1, 2).float().div(255) - mean) / std
        logits = self.conv_out(self.ffm(*self.cp(x)))
        full: Tensor = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
        return full


def _planes(values: Sequence[float], device: torch.device) -> Tensor:
    """Return (3, 1, 1) float32, made on the device: a CUDA graph cannot hold a copy to it."""
    return torch.cat([torch.full((1, 1, 1), value, device=device) for value in values])


def to_labels(logits: Tensor) -> Tensor:
    """Return (B, 512, 512) uint8 class numbers."""
    return logits.argmax(1).to(torch.uint8)


def load_parser(folder: Path) -> BiSeNet:
    """Read the parser in float32 from its published folder.

    Raises:
        ModelLoadFailed: the file is missing, damaged, or of another network.
    """
    weights = find_weights(folder, *PARSERS)
    return load_network(
        BiSeNet,
        read_weights(weights),
        rename=lambda key: None if key.startswith(_AUXILIARY_HEADS) else key,
    )
