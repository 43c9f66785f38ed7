"""Weight files: what is accepted, what is refused, and that nothing in them ever runs."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.networks.checkpoint import (
    find_weights,
    load_network,
    read_config,
    read_weights,
)
from musetalk_pipeline.networks.parser import load_parser
from musetalk_pipeline.networks.unet import load_unet, unet_files
from musetalk_pipeline.networks.vae import FaceDecoder, load_vae
from musetalk_pipeline.networks.whisper import load_whisper


class Trap:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def small() -> nn.Linear:
    return nn.Linear(3, 2)


def tensors() -> dict[str, Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, 2.0])}


def test_tensors_arrive_in_float32_eval_mode_and_without_gradients(tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in tensors().items()}, tmp_path / "w.pth")
    network = load_network(small, read_weights(tmp_path / "w.pth"))
    assert network.weight.dtype is torch.float32
    assert network.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("is_zip", [True, False])
def test_both_formats_of_torch_are_read(tmp_path: Path, is_zip: bool) -> None:
    torch.save(tensors(), tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
    assert read_weights(tmp_path / "w.pth").tensors["bias"].tolist() == [1, 2]


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "w.safetensors")
    assert load_network(small, read_weights(tmp_path / "w.safetensors")).bias.tolist() == [1, 2]


def test_a_state_dict_inside_a_checkpoint_is_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": OrderedDict(tensors())}, tmp_path / "w.pth")
    assert set(read_weights(tmp_path / "w.pth").tensors) == {"weight", "bias"}


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, is_zip: bool) -> None:
    sprung = tmp_path / "sprung"
    torch.save(
        {"state_dict": tensors(), "meta": Trap(sprung)},
        tmp_path / "w.pth",
        _use_new_zipfile_serialization=is_zip,
    )
    with pytest.raises(ModelLoadFailed, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")
    assert not sprung.exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_objects_of_a_training_checkpoint_are_passed_over_without_running(
    tmp_path: Path, is_zip: bool
) -> None:
    sprung = tmp_path / "sprung"
    meta = {"trap": Trap(sprung), "mean": np.arange(3.0), "scale": np.float32(2)}
    torch.save(
        {"meta": meta, "state_dict": OrderedDict(tensors())},
        tmp_path / "w.pth",
        _use_new_zipfile_serialization=is_zip,
    )
    read = read_weights(tmp_path / "w.pth", tolerate_objects=True)
    assert read.tensors["bias"].tolist() == [1, 2]
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 300])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(tensors(), path)
    else:
        save_file({"weight": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelLoadFailed) as caught:
        read_weights(path)
    assert caught.value.details["file"] == str(path)


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="weights fetch"):
        find_weights(tmp_path, "unet.pth")
    with pytest.raises(ModelLoadFailed, match="does not exist"):
        read_weights(tmp_path / "unet.pth")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"bias": None}, "bias"),
        ({"extra": torch.zeros(1)}, "extra"),
        ({"weight": torch.zeros(3, 2)}, "weight"),
    ],
    ids=["missing", "unexpected", "wrong shape"],
)
def test_a_file_of_another_network_is_refused_with_its_key(
    tmp_path: Path, change: dict[str, Tensor | None], key: str
) -> None:
    changed = {k: v for k, v in {**tensors(), **change}.items() if v is not None}
    torch.save(changed, tmp_path / "w.pth")
    with pytest.raises(ModelLoadFailed, match=key) as caught:
        load_network(small, read_weights(tmp_path / "w.pth"))
    assert caught.value.details["key"] == key
    assert caught.value.details["file"] == str(tmp_path / "w.pth")


def test_something_other_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": 3}, tmp_path / "w.pth")
    with pytest.raises(ModelLoadFailed, match="weight"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_broken_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelLoadFailed, match=r"config\.json"):
        read_config(tmp_path / "config.json")


def test_both_namings_of_the_autoencoder_are_the_same_network(models: Path, tmp_path: Path) -> None:
    published = load_vae(models / "sd-vae")
    shutil.copy(models / "sd-vae" / "config.json", tmp_path)
    save_file(published.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    latents = torch.randn(1, 4, 32, 32)
    with torch.inference_mode():
        old = FaceDecoder(published)(latents)
        new = FaceDecoder(load_vae(tmp_path))(latents)
    assert torch.equal(old, new)


def test_the_ear_needs_the_encoder_alone(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "whisper" / "config.json", tmp_path)
    whole = read_weights(models / "whisper" / "pytorch_model.bin").tensors
    encoder = {
        key.removeprefix("model."): tensor.clone()
        for key, tensor in whole.items()
        if key.startswith("model.encoder.")
    }
    save_file(encoder, tmp_path / "model.safetensors")
    sound = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert np.array_equal(
        load_whisper(models / "whisper").encode(sound), load_whisper(tmp_path).encode(sound)
    )


def test_the_parser_does_not_need_its_auxiliary_heads(models: Path, tmp_path: Path) -> None:
    weights = read_weights(models / "face-parse-bisent" / "79999_iter.pth").tensors
    assert any(key.startswith("conv_out16.") for key in weights)
    kept = {key: value for key, value in weights.items() if not key.startswith("conv_out16.")}
    torch.save(kept, tmp_path / "79999_iter.pth")
    assert load_parser(tmp_path).conv_out.conv_out.weight.shape == (19, 256, 1, 1)


def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    models: Path, tmp_path: Path
) -> None:
    weights, config = unet_files(models, "v15")
    changed = json.loads(config.read_text()) | {"block_out_channels": [8, 8, 8, 16]}
    (tmp_path / "musetalk.json").write_text(json.dumps(changed))
    with pytest.raises(ModelLoadFailed, match=r"unet\.pth"):
        load_unet(weights, tmp_path / "musetalk.json")
