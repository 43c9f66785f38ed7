"""Where networks run, in what precision, and how many frames go through at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from musetalk_pipeline.errors import ModelLoadFailed

Precision = Literal["float32", "float16", "bfloat16"]

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

CPU_BATCH = 4  # guess: on a CPU a larger batch only delays the first frame
LARGEST_BATCH = 32  # guess: a segment has about 50 frames, and larger batches stop paying

# Peak of live activations of the hungriest network, the VAE encoder with the two pictures of one
# frame, at full size in float32: counted on meta tensors (decoder 192 MiB, UNet 33, parser 36).
_FRAME_BYTES_FLOAT32 = 320 * 2**20
_WORKSPACE_FACTOR = 2.0  # guess: convolution workspaces and fragmentation on top of it
_SHARE_OF_FREE = 0.8  # guess: room for what else runs on the GPU

_OUT_OF_MEMORY_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def resolve_device(name: str) -> torch.device:
    """Return the device with its index: `auto`, `cpu`, `cuda` or `cuda:N`.

    A bare "cuda" would follow whatever GPU is current in a thread at the time.

    Raises:
        ModelLoadFailed: the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    device = torch.device(name)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ModelLoadFailed(
            f"The device {name!r} was asked for, but torch sees no CUDA GPU here. Use `device: "
            "cpu`, or install a driver and a CUDA build of torch.",
            device=name,
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ModelLoadFailed(
            f"The device {name!r} was asked for, but there are only {torch.cuda.device_count()} "
            "GPUs.",
            device=name,
        )
    return torch.device("cuda", index)


def check_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype, if the device computes in it.

    Raises:
        ModelLoadFailed: bfloat16 on a GPU older than Ampere.
    """
    if precision == "bfloat16" and device.type == "cuda":
        major, _minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise ModelLoadFailed(
                f"{torch.cuda.get_device_name(device)} has no bfloat16; use float16.",
                device=str(device),
            )
    return DTYPES[precision]


def choose_batch_size(free_bytes: int, dtype: torch.dtype) -> int:
    """Return how many frames fit into `free_bytes` of GPU memory, a power of two from 1 to 32.

    `0.8 * free / (2 * 320 MiB)` frames in float32, twice as many in half precision.
    """
    per_frame = _FRAME_BYTES_FLOAT32 * dtype.itemsize / 4 * _WORKSPACE_FACTOR
    fitting = int(_SHARE_OF_FREE * free_bytes / per_frame)
    return min(LARGEST_BATCH, 1 << (max(1, fitting).bit_length() - 1))


def default_batch_size(device: torch.device, dtype: torch.dtype) -> int:
    """Return the batch size where none is set; ask after the networks are loaded."""
    if device.type == "cpu":
        return CPU_BATCH
    free_bytes, _total = torch.cuda.mem_get_info(device)
    return choose_batch_size(free_bytes, dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether CUDA, cuBLAS or cuDNN failed for want of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in _OUT_OF_MEMORY_WORDS
    )


@contextlib.contextmanager
def exact_math(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute as `dtype` says: no TF32 in float32, and there no choice of algorithm by timing.

    In half precision shapes are fixed, so cuDNN may time its algorithms once for each.
    """
    if device.type != "cuda":
        yield
        return
    is_exact = dtype is torch.float32
    with (
        torch.cuda.device(device),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=not is_exact, deterministic=is_exact, allow_tf32=False
        ),
    ):
        yield
