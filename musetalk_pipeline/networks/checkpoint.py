"""Reads published weight files without running any code in them, and loads them into networks.

1. `find_weights` picks the file of a network in its folder.
2. `read_weights` maps it: `.safetensors`, or a pickle with code refused.
3. `load_network` builds the network without memory of its own, checks every key and shape, and
   gives it the file's tensors. They stay mapped, so nothing is held twice and processes share them.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from musetalk_pipeline.errors import ModelLoadFailed

logger = logging.getLogger(__name__)

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_SHOWN_KEYS = 3  # a wrong file lacks hundreds; three are enough to recognise it


@dataclass(frozen=True, slots=True)
class Weights:
    """`tensors`: key to tensor, as in `path`, memory-mapped if the format allows it."""

    path: Path
    tensors: Mapping[str, Tensor]


def find_weights(folder: Path, *names: str) -> Path:
    """Return the first of `names` that is a file in `folder`.

    Raises:
        ModelLoadFailed: there is none. Fetch the weights.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelLoadFailed(
        f"No {' or '.join(names)} in {folder}. Fetch the weights with `lipsync weights fetch`.",
        file=str(folder / names[0]),
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read a network's JSON configuration.

    Raises:
        ModelLoadFailed: missing or not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelLoadFailed(
            f"The network configuration {path} cannot be read ({exc}). Fetch it again: "
            "`lipsync weights fetch`.",
            file=str(path),
        ) from exc
    if not isinstance(config, dict):
        raise ModelLoadFailed(f"{path} does not hold a JSON object.", file=str(path))
    return config


def read_weights(path: Path, *, tolerate_objects: bool = False) -> Weights:
    """Read the tensors of `path`; a checkpoint with a `state_dict` inside gives that one.

    `tolerate_objects` is for training checkpoints (mmengine's) that carry NumPy arrays and loggers
    next to the tensors: those become inert placeholders. Nothing in the file is executed either
    way.

    Raises:
        ModelLoadFailed: missing, truncated, or a pickle that refers to code.
    """
    try:
        loaded = _read(path, tolerate_objects)
    except FileNotFoundError as exc:
        raise ModelLoadFailed(f"The weight file {path} does not exist.", file=str(path)) from exc
    except Exception as exc:
        # Every reader has its own errors for damage: RuntimeError, UnpicklingError, KeyError,
        # EOFError, SafetensorError, …. They all mean the same to the operator. torch's message is
        # left out, because it recommends switching the check off.
        raise ModelLoadFailed(
            f"The weight file {path} cannot be read ({type(exc).__name__}): it is damaged, cut "
            "short, or holds more than tensors. Fetch it again: `lipsync weights fetch`.",
            file=str(path),
        ) from exc
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelLoadFailed(
            f"The weight file {path} does not hold any named tensors.", file=str(path)
        )
    strangers = [key for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strangers:
        raise ModelLoadFailed(
            f"The weight file {path} holds something other than a tensor at {strangers[0]!r}.",
            file=str(path),
            key=str(strangers[0]),
        )
    return Weights(path, dict(loaded))


def load_network(
    make: Callable[[], NetworkT],
    weights: Weights,
    *,
    rename: Callable[[str], str | None] = lambda key: key,
) -> NetworkT:
    """Return `make()` with the file's tensors in it, float32, in eval mode, without gradients.

    `rename` maps a key of the file to one of the network, or to None if it is not used.

    Raises:
        ModelLoadFailed: a key is missing or unexpected, or a shape differs; names file and key.
    """
    started = time.monotonic()
    with torch.device("meta"):  # no memory, no random numbers
        network = make()
    tensors = {
        new: tensor for old, tensor in weights.tensors.items() if (new := rename(old)) is not None
    }
    _check(network.state_dict(), tensors, weights.path)
    network.load_state_dict(tensors, strict=True, assign=True)
    network = network.float().eval().requires_grad_(False)
    logger.info(
        "network loaded",
        extra={
            "network": type(network).__name__,
            "file": str(weights.path),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "mib": round(sum(t.numel() * t.element_size() for t in tensors.values()) / 2**20, 1),
            "elapsed_s": round(time.monotonic() - started, 3),
        },
    )
    return network


def _check(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    for problem, keys in (("lacks", missing), ("has unexpected", unexpected)):
        if keys:
            more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
            raise ModelLoadFailed(
                f"The weight file {path} {problem} {', '.join(keys[:_SHOWN_KEYS])}{more}: it does "
                "not belong to this network or its configuration.",
                file=str(path),
                key=keys[0],
                count=len(keys),
            )
    for key, tensor in wanted.items():
        if tensor.shape != found[key].shape:
            raise ModelLoadFailed(
                f"In the weight file {path}, {key} has the shape {tuple(found[key].shape)}, but "
                f"the network's configuration requires {tuple(tensor.shape)}.",
                file=str(path),
                key=key,
            )


def _read(path: Path, tolerate_objects: bool) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path, device="cpu")
    if not path.is_file():
        raise FileNotFoundError(path)
    # Only the zip format of torch >= 1.6 can be mapped; the parser's and S3FD's files are older.
    options: dict[str, Any] = {"map_location": "cpu", "mmap": zipfile.is_zipfile(path)}
    if tolerate_objects:
        return torch.load(path, weights_only=False, pickle_module=_inert_pickle(), **options)
    return torch.load(path, weights_only=True, **options)


# What a checkpoint may build. All of it is data; calling these with any arguments runs no code from
# the file.
_BUILDERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _Inert:
    """Stands for any object that is not a tensor, and accepts whatever the pickle does to it."""

    def __new__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        """Keep nothing."""

    def __call__(self, *_args: object, **_kwargs: object) -> _Inert:
        return self

    def __setstate__(self, _state: object) -> None:
        """Keep nothing."""

    def __setitem__(self, _key: object, _value: object) -> None:
        """Keep nothing."""

    def append(self, _value: object) -> None:
        """Keep nothing."""

    def extend(self, _values: object) -> None:
        """Keep nothing."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        return _BUILDERS.get((module, name), _Inert)


def _inert_pickle() -> types.ModuleType:
    """Return a pickle module for torch.load whose reader builds tensors and placeholders only."""
    module = types.ModuleType("inert_pickle")
    module.__dict__.update(pickle.__dict__)

    def load(file: Any, **options: Any) -> Any:
        return _InertUnpickler(file, **options).load()

    module.Unpickler = _InertUnpickler  # type: ignore[attr-defined]
    module.load = load  # type: ignore[attr-defined]
    return module
