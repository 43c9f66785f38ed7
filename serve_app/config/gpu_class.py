"""The class of this machine's GPU, as orchestrators name it."""

from __future__ import annotations

import re
import subprocess

from serve_app.config.environment import Environment

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


def gpu_class(env: Environment, *, detected: str | None, is_buffer: bool = False) -> str:
    """Return the GPU class that is set, else the one that was detected, else `cpu`.

    Two variables name it. For a buffer worker the shorter one counts if both are set.
    """
    if is_buffer and env.short_gpu_class:
        return env.short_gpu_class
    return env.gpu_class_name or env.short_gpu_class or detected or NO_GPU


def detect_gpu_class() -> str | None:
    """Return the class of the first GPU as the driver names it; None without an NVIDIA GPU.

    nvidia-smi is called, because importing torch would cost the ingress 300 MB and seconds.
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
