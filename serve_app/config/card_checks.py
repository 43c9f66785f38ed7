"""Whether the GPUs of this machine can run the build of torch that is installed.

A build has kernels for some compute capabilities only, and needs a driver that knows its CUDA. A
card without kernels is found by the first job otherwise, with "no kernel image is available for
execution on the device". Neither torch nor CUDA is loaded for this: `nvidia-smi` tells what there
is, and the version of the installed package which build it is.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

QUERY = ("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
ANSWER_S = 20.0  # the first call after boot loads the driver
MIB = 1 << 20
SHM_FOLDER = Path("/dev/shm")
# Ray's own threshold is a share of the memory; below this even one segment of 720p is on the disk.
WANTED_SHM_MIB = 1024

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as `nvidia-smi` names it. `capability`: (8, 9) for Ada, for example."""

    name: str
    capability: Version
    driver: str


@dataclass(frozen=True, slots=True)
class Build:
    """A build of torch. Capabilities are those of PyTorch's own wheels of 2.13."""

    name: str
    lowest: Version
    highest: Version
    driver: int  # the oldest one, by its first number

    def has(self, capability: Version) -> bool:
        """Return whether it has kernels for a card."""
        return self.lowest <= capability <= self.highest


# docs/dependencies.md: torch 2.13 comes for CUDA 12.6 and 13.0; names as in scripts/setup.sh.
BUILDS = (
    Build("cu126", lowest=(5, 0), highest=(9, 0), driver=525),
    Build("cu13", lowest=(7, 5), highest=(12, 1), driver=580),
)


def installed_build() -> Build | None:
    """Return the build of torch that is installed; None for one that runs on CPUs only.

    The registry's own build bears no local version, and is the one for CUDA 13.
    """
    local = metadata.version("torch").partition("+")[2]
    if local.startswith("cpu"):
        return None
    return next((build for build in BUILDS if local.startswith(build.name)), BUILDS[-1])


def read_cards() -> list[Card]:
    """Return the GPUs of this machine; none if `nvidia-smi` is missing or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, *QUERY], capture_output=True, text=True, timeout=ANSWER_S, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return []
    return [card for line in answer.stdout.splitlines() if (card := _card(line))]


def _card(line: str) -> Card | None:
    parts = [part.strip() for part in line.split(",")]
    try:
        name, capability, driver = parts
        major, _, minor = capability.partition(".")
        return Card(name, (int(major), int(minor)), driver)
    except ValueError:  # a driver of before 2021 cannot tell the capability
        return None


def card_faults(cards: list[Card], build: Build | None) -> Iterator[str]:
    """Yield a sentence for every card that this build cannot run on, with the one that can."""
    if build is None:
        if cards:
            yield (
                f"torch is installed without CUDA, and this machine has {cards[0].name}: remove "
                ".venv and set up again on this machine, or use an image with CUDA"
            )
        return
    for card in dict.fromkeys(cards):
        if not build.has(card.capability):
            yield f"{_named(card)} is not in this build for {_range(build)}: {_remedy(card)}"
        elif _driver(card) < build.driver:
            yield (
                f"{_named(card)} has the driver {card.driver}, and this build ({build.name}) needs "
                f"{build.driver} or newer: update the driver, or {_remedy(card, but=build)}"
            )


def card_check() -> str:
    """Return `ok`, or what is wrong with the GPUs of this machine, as `/v1/preflight` has it."""
    cards = read_cards()
    if not cards:
        return "ok, but nvidia-smi does not answer, so the driver was not compared with this build"
    return "; ".join(card_faults(cards, installed_build())) or "ok"


def cards_in_words(cards: list[Card]) -> str:
    """Return the GPUs with what decides which build they need."""
    return ", ".join(f"{_named(card)} with driver {card.driver}" for card in cards) or "unknown"


def shm_fault(folder: Path = SHM_FOLDER) -> str | None:
    """Return a sentence if shared memory is too small to be useful; the application still works."""
    try:
        total = shutil.disk_usage(folder).total // MIB
    except OSError:
        return f"{folder} does not exist, so frames between stages are kept on the disk"
    if total >= WANTED_SHM_MIB:
        return None
    return (
        f"{folder} has {total} MiB, so frames between stages are kept on the disk, which is slow: "
        "give the container more (docker run --shm-size 8g, or shm_size of the container group)"
    )


def _driver(card: Card) -> int:
    first = card.driver.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def _named(card: Card) -> str:
    return f"{card.name} (compute capability {_dotted(card.capability)})"


def _range(build: Build) -> str:
    return (
        f"compute capabilities {_dotted(build.lowest)} to {_dotted(build.highest)} ({build.name})"
    )


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _remedy(card: Card, but: Build | None = None) -> str:
    fitting = [build for build in BUILDS if build is not but and build.has(card.capability)]
    if not fitting:
        return "rent another card" if but is None else "rent a machine with a newer driver"
    build = fitting[0]
    return f"use the build {build.name}, which needs driver {build.driver} or newer"
