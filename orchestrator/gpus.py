"""What the class of a GPU says about the card: its architecture and its memory.

Workers of the fixed protocol send only the name of their class, such as `RTX-5060Ti-16GB`. The
requirements of a job are about architecture and memory, so they are read from that name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

ARCHITECTURES: Final = ("turing", "ampere", "ada", "hopper", "blackwell")

_SERIES: Final = (
    (re.compile(r"^(RTX|QUADRO-RTX)-?20\d\d"), "turing"),
    (re.compile(r"^(RTX|QUADRO-RTX)-?[4568]000(?!-?ADA)$"), "turing"),
    (re.compile(r"^T4\b"), "turing"),
    (re.compile(r"^RTX-?30\d\d"), "ampere"),
    (re.compile(r"^(RTX-?)?A[1-9]\d*00?\b"), "ampere"),
    (re.compile(r"^RTX-?40\d\d"), "ada"),
    (re.compile(r"^L(4|40S?)\b"), "ada"),
    (re.compile(r"-?ADA\b"), "ada"),
    (re.compile(r"^G?H[12]00\b"), "hopper"),
    (re.compile(r"^RTX-?50\d\d"), "blackwell"),
    (re.compile(r"^G?B[23]00\b"), "blackwell"),
)
# The makers' figures for names that orchestrators send without a size.
_MEMORY_GB: Final = {
    "RTX2070": 8, "RTX2080": 8, "RTX2080TI": 11, "RTX3060": 12, "RTX3070": 8, "RTX3080": 10,
    "RTX3090": 24, "RTX3090TI": 24, "RTX4060": 8, "RTX4070": 12, "RTX4070TI": 12, "RTX4080": 16,
    "RTX4090": 24, "RTX5060": 8, "RTX5070": 12, "RTX5070TI": 16, "RTX5080": 16, "RTX5090": 32,
    "T4": 16, "A10": 24, "A40": 48, "L4": 24, "L40": 48, "L40S": 48, "H100": 80, "H200": 141,
    "B200": 180,
}  # fmt: skip
_BRAND = re.compile(r"\b(NVIDIA|GEFORCE|TESLA)\b")
_SIZE = re.compile(r"-(\d+(?:\.\d+)?)-?GB\b")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of card. None is a fact that the name of the class does not contain."""

    architecture: str | None = None
    vram_gb: float | None = None


@lru_cache(maxsize=1024)
def read_gpu_class(gpu_class: str) -> Gpu:
    """Return what the name of a class says. Names are untrusted and may be anything."""
    name = "-".join(_BRAND.sub(" ", gpu_class[:100].upper().replace("_", " ")).split())
    size = _SIZE.search(name)
    bare = name[: size.start()] if size else name
    found = next((label for pattern, label in _SERIES if pattern.search(bare)), None)
    known = _MEMORY_GB.get(bare.replace("-", ""))
    return Gpu(found, float(size.group(1)) if size else known)
