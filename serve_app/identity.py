"""Who this worker is to an orchestrator: its identity, one per job slot, and its GPU class.

Environment and detection are arguments, so that all of it can be tested without either.
"""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Mapping

ID_VARIABLES = ("SALAD_MACHINE_ID", "VAST_CONTAINERLABEL", "OCTASPACE_NODE_ID", "WORKER_ID")
GPU_CLASS_VARIABLES = ("GPU_CLASS_NAME", "GPU_CLASS")
NO_GPU = "cpu"
NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,memory.total",
    "--format=csv,noheader,nounits",
)
NVIDIA_SMI_TIMEOUT_S = 20.0  # the first call on a machine without persistence mode takes seconds

_BRANDS = re.compile(r"\b(NVIDIA|GeForce|Graphics Device)\b", re.IGNORECASE)
_SUFFIX = re.compile(r"(\d)[ -](Ti|SUPER|XT)\b", re.IGNORECASE)
_HAS_MEMORY = re.compile(r"\d ?GB\b", re.IGNORECASE)


def new_worker_id() -> str:
    """Return a random identity. Call once per process and keep it."""
    return f"worker-{uuid.uuid4().hex[:16]}"


def worker_id(env: Mapping[str, str], *, fallback: str, is_buffer: bool = False) -> str:
    """Return the identity of this machine: the first variable of contracts.md's order that is set.

    A buffer worker is named by `BUFFER_WORKER_ID` before all others. `fallback` is the random one.
    """
    names = ("BUFFER_WORKER_ID", *ID_VARIABLES) if is_buffer else ID_VARIABLES
    return _first_set(env, names) or fallback


def slot_id(machine: str, slot: int) -> str:
    """Return the identity of job slot `slot` on worker `machine`.

    Heartbeat and claim carry one job at most, so a worker that runs several at a time is several
    workers to the orchestrator. Slot 0 keeps the plain identity: with one slot, which is the
    default, the orchestrator sees what it has always seen.
    """
    return machine if slot == 0 else f"{machine}-slot{slot}"


def gpu_class(env: Mapping[str, str], *, detected: str | None) -> str:
    """Return the GPU class that is set, else the one that was detected, else `cpu`."""
    return _first_set(env, GPU_CLASS_VARIABLES) or detected or NO_GPU


def detect_gpu_class() -> str | None:
    """Return the class of the first GPU as the driver names it; None without an NVIDIA GPU.

    Asks nvidia-smi: importing torch for a name would cost the ingress 300 MB and seconds.
    """
    try:
        answer = subprocess.run(
            NVIDIA_SMI, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return read_gpu_class(answer)


def read_gpu_class(answer: str) -> str | None:
    """Return the class of the first GPU in nvidia-smi's answer (`name, MiB` per line).

    `NVIDIA GeForce RTX 5060 Ti, 16311` is `RTX-5060Ti-16GB`, the form that orchestrators use.
    """
    name, _, memory = answer.strip().partition("\n")[0].rpartition(",")
    plain = _SUFFIX.sub(r"\1\2", _BRANDS.sub(" ", name).strip())
    words = "-".join(plain.split())
    if not words:
        return None
    if _HAS_MEMORY.search(words) or not memory.strip().isdigit():
        return words
    return f"{words}-{round(int(memory) / 1024)}GB"


def _first_set(env: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := env.get(name, "").strip())), None)
