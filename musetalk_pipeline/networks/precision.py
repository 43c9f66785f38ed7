"""On which device networks run, in what precision, and how many frames they take at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from musetalk_pipeline.errors import GpuLost, ModelLoadFailed
from musetalk_pipeline.options import Precision

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

# cuDNN tries one algorithm after the other; if none gets its workspace, it finds no engine.
_OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine",
)


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
            f"The device {name!r} was requested, but torch finds no CUDA GPU here. Use `device: "
            "cpu`, or install a driver and a CUDA build of torch.",
            device=name,
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ModelLoadFailed(
            f"The device {name!r} was requested, but there are only {torch.cuda.device_count()} "
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
                f"{torch.cuda.get_device_name(device)} does not support bfloat16; use float16.",
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


def default_batch_size(device: torch.device, dtype: torch.dtype, gpu_share: float = 1.0) -> int:
    """Return the batch size if none is set. Call it after the networks are loaded.

    `gpu_share`: of the memory that is free now, if other processes are about to load onto the GPU.
    """
    if device.type == "cpu":
        return CPU_BATCH
    free_bytes, _total = torch.cuda.mem_get_info(device)
    return choose_batch_size(int(free_bytes * gpu_share), dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether CUDA, cuBLAS or cuDNN failed for lack of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in _OUT_OF_MEMORY_WORDS
    )


def is_gpu_lost(error: BaseException) -> bool:
    """Return whether the CUDA context is lost: an illegal address, a failed launch, bad memory."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDNN_STATUS_EXECUTION" in str(error)


@contextlib.contextmanager
def naming_lost_gpu(network: str, device: torch.device) -> Iterator[None]:
    """Raise `GpuLost` if the GPU fails for good within the block."""
    try:
        yield
    except RuntimeError as error:
        if not is_gpu_lost(error):
            raise
        raise GpuLost(f"The {network} failed on {device}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, without the pages that torch adds."""
    return str(error).partition("\n")[0][:200]


def forbid_tf32(device: torch.device) -> None:
    """Let this process convolve in full float32 on a GPU, where cuDNN's default is TF32."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def exact_math(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute float32 without TF32, and without choosing algorithms by timing.

    In half precision, cuDNN may time its algorithms once for each of the fixed shapes.
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
