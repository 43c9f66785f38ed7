"""Small networks with random weights, in files named and keyed like the published ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.model_folder import SMALL, save, write_models, write_unet

PARSER = Path("face-parse-bisent", "79999_iter.pth")
WHISPER = Path("whisper", "pytorch_model.bin")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that tests must not write to."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    write_unet(folder / "musetalk" / "pytorch_model.bin", SMALL, initial_state)
    write_models(folder, SMALL, initial_state)
    # The published files have more than is used.
    add(folder / WHISPER, {"model.decoder.embed_tokens.weight": torch.zeros(64, 384)})
    heads = ("conv_out16.conv_out.weight", "conv_out32.conv_out.weight")
    add(folder / PARSER, {name: torch.zeros(19, 64, 1, 1) for name in heads})
    return folder


def initial_state(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Return the weights that a new network begins its training with."""
    return make().state_dict()


def add(path: Path, tensors: dict[str, Tensor]) -> None:
    """Add tensors to a checkpoint."""
    save(path, torch.load(path, weights_only=True) | tensors)
