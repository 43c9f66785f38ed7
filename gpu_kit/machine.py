"""Write what the figures are measured on, and whether what the pieces need is there."""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# In this order: torchvision is not needed, but transformers takes what it finds.
MODULES = (
    *("numpy", "cv2", "scipy", "skimage", "onnxruntime", "torch", "torchvision", "triton"),
    *("transformers", "huggingface_hub", "diffusers", "av", "pydantic", "soundfile", "soxr"),
    *("ai_edge_litert", "b2sdk", "psutil", "pytest", "xdist", "pytest_timeout", "pytest_asyncio"),
)
TOOLS = ("ffmpeg", "ffprobe", "setpriv", "prlimit", "gcc", "nvidia-smi")


def main() -> int:
    """Write the facts to the file that is named; fail if torch cannot compute on the GPU."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "modules": {name: version(name) for name in MODULES},
        "tools": {name: shutil.which(name) for name in TOOLS},
        "ffmpeg": first_line("ffmpeg", "-version"),
        "gpu": gpu(),
    }
    facts["confinement"] = confinement()
    Path(sys.argv[1]).write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))
    return 0


def version(name: str) -> str:
    """Return the version of a module, or why it cannot be imported."""
    try:
        module = importlib.import_module(name)
    except Exception as error:
        return f"missing: {type(error).__name__}: {error}"[:200]
    return str(getattr(module, "__version__", "there"))


def first_line(*command: str) -> str:
    """Return the first line that a program prints, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"missing: {error}"
    return (done.stdout or done.stderr).partition("\n")[0]


def gpu() -> dict[str, Any]:
    """Return the card, its driver and torch's build, after a product computed on it."""
    query = "--query-gpu=name,driver_version,memory.total,memory.used,clocks.sm"
    facts: dict[str, Any] = {"nvidia-smi": first_line("nvidia-smi", query, "--format=csv,noheader")}
    import torch

    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    facts["is_available"] = torch.cuda.is_available()
    if facts["is_available"]:
        square = torch.randn(1024, 1024, device="cuda", dtype=torch.float16)
        facts["product_is_finite"] = bool(torch.isfinite(square @ square).all())
        facts["name"] = torch.cuda.get_device_name()
        facts["capability"] = torch.cuda.get_device_capability()
        facts["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        facts["free_and_total_mib"] = [size >> 20 for size in torch.cuda.mem_get_info()]
    return facts


def confinement() -> str:
    """Return what the kernel cannot take from media tools."""
    from musetalk_pipeline.media.confinement import missing

    return missing() or "complete"


if __name__ == "__main__":
    sys.exit(main())
