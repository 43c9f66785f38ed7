"""The encoder of whisper-tiny, whose features MuseTalk draws from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.whisper.configuration_whisper import WhisperConfig
from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_pipeline.networks.checkpoint import (
    find_weights,
    load_network,
    read_config,
    read_weights,
)
from musetalk_pipeline.networks.files import CONFIG, WHISPERS
from musetalk_pipeline.plan import SAMPLE_RATE

CHUNK_S = 30  # what Whisper was trained on; every chunk is padded to it and encoded alone
CHUNK_SAMPLES = CHUNK_S * SAMPLE_RATE
STEPS_PER_S = 50
CHUNK_STEPS = CHUNK_S * STEPS_PER_S
LAYERS = 5  # the input of the first layer and the outputs of all four
WIDTH = 384

# Entries of config.json that describe the file, not the encoder.
_NOT_SETTINGS = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version")


class ChunkEncoder:
    """Turns 30 s of sound into five layers of features every 20 ms. Not for use by two threads."""

    def __init__(self, encoder: WhisperEncoder) -> None:
        self._encoder = encoder
        self._extractor = WhisperFeatureExtractor()

    def mel(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (80, 3000) float32 log-mel features. `samples`: (≤ 480000,) at 16 kHz."""
        features: NDArray[np.float32] = self._extractor(
            samples, sampling_rate=SAMPLE_RATE, return_tensors="np"
        )["input_features"][0]
        return features

    def states(self, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (1500, 5, 384) float32: time, layer, channel; the last after the final norm."""
        parameter = next(self._encoder.parameters())
        with torch.inference_mode():
            batch = torch.from_numpy(mel)[None].to(parameter.device, parameter.dtype)
            layers = self._encoder(batch, output_hidden_states=True).hidden_states
            stacked = torch.stack(list(layers), dim=2)[0]  # (1500, 5, 384)
        return stacked.float().cpu().numpy()

    def encode(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (1500, 5, 384) features of one chunk of (≤ 480000,) samples."""
        return self.states(self.mel(samples))


def load_whisper(folder: Path, device: str = "cpu") -> ChunkEncoder:
    """Read the encoder half of Whisper, float32, from its published folder.

    Raises:
        ModelLoadFailed: a file is missing or damaged, or does not fit the configuration.
    """
    weights = find_weights(folder, *WHISPERS)
    settings = {
        key: value
        for key, value in read_config(folder / CONFIG).items()
        if key not in _NOT_SETTINGS
    }
    encoder = load_network(
        lambda: WhisperEncoder(WhisperConfig(**settings)),
        read_weights(weights),
        rename=_encoder_name,
    )
    return ChunkEncoder(encoder.to(device))


def _encoder_name(key: str) -> str | None:
    key = key.removeprefix("model.")
    if key.startswith("decoder.") or key == "proj_out.weight":
        return None
    return key.removeprefix("encoder.")
