"""Say which compute capabilities the CUDA libraries of wheels have kernels for.

    python scripts/cuda_kernels.py WHEEL_OR_FOLDER ... [--need 7.5 8.6 12.0]

Nothing is loaded, so neither a GPU nor CUDA is needed: the file has containers (`fatbin`), which
begin with a magic number. Most are in the section `.nv_fatbin`, those of cuFFT are elsewhere. Each
has entries of machine code for one architecture (`sm`), or of PTX (`ptx`), which a driver compiles
for the card and for later ones.

A card runs machine code of its own major version and of the same or a lower minor one: a card of
8.6 runs sm_80. Exit code 1: a capability that is needed has no kernels in a library that has some.
"""

from __future__ import annotations

import argparse
import json
import mmap
import struct
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = b"\x50\xed\x55\xba"
HEADER = struct.Struct("<4sHHQ")  # magic, version, bytes of this header, bytes of the entries
PTX, MACHINE_CODE = 1, 2
LARGE_BYTES = 1 << 20  # smaller files hold helpers, and no kernels that a model runs

Version = tuple[int, int]


@dataclass(slots=True)
class Kernels:
    """How many entries a library has, by capability."""

    machine_code: dict[Version, int] = field(default_factory=dict)
    ptx: dict[Version, int] = field(default_factory=dict)

    def can_run_on(self, card: Version) -> bool:
        """Return whether a card can run it."""
        same_major = any(sm[0] == card[0] and sm <= card for sm in self.machine_code)
        return same_major or any(version <= card for version in self.ptx)


def kernels_of(path: Path) -> Kernels | None:
    """Return what a library has; None if it is not an ELF file, or has no kernels."""
    if path.stat().st_size < HEADER.size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"\x7fELF":
            return None
        found = Kernels()
        for offset, length in _containers(content):
            _read_entries(content, offset, length, found)
    return found if found.machine_code or found.ptx else None


def _containers(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where the entries of each container are, and their length."""
    at = 0
    while (at := content.find(MAGIC, at)) >= 0:
        if at + HEADER.size <= len(content):
            _, version, header_bytes, length = HEADER.unpack_from(content, at)
            is_one = version == 1 and header_bytes == HEADER.size
            if is_one and at + header_bytes + length <= len(content):
                yield at + header_bytes, length
        at += len(MAGIC)


def _read_entries(content: mmap.mmap, offset: int, length: int, found: Kernels) -> None:
    end = offset + length
    while offset + 64 <= end:
        kind, _, header_bytes, payload_bytes = struct.unpack_from("<HHIQ", content, offset)
        (architecture,) = struct.unpack_from("<I", content, offset + 28)
        if kind in (PTX, MACHINE_CODE) and architecture:
            entries = found.ptx if kind == PTX else found.machine_code
            version = divmod(architecture, 10)
            entries[version] = entries.get(version, 0) + 1
        if not header_bytes + payload_bytes:
            return
        offset += header_bytes + payload_bytes


def libraries(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield the larger shared libraries of a wheel or a folder, one at a time."""
    if source.is_dir():
        for path in sorted(source.rglob("*.so*")):
            if path.is_file() and path.stat().st_size >= LARGE_BYTES:
                yield str(path.relative_to(source)), path
        return
    with zipfile.ZipFile(source) as wheel:
        for item in wheel.infolist():
            if ".so" in Path(item.filename).name and item.file_size >= LARGE_BYTES:
                with tempfile.TemporaryDirectory() as folder:
                    yield item.filename, Path(wheel.extract(item, folder))


def dotted(version: Version) -> str:
    """Return a version as it is usually written."""
    return ".".join(map(str, version))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a library, and return the exit code."""
    parser = argparse.ArgumentParser(description="Say which capabilities have kernels.")
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--need", nargs="*", default=[], metavar="CAPABILITY")
    options = parser.parse_args(arguments)
    needed = [(int(text.split(".")[0]), int(text.split(".")[1])) for text in options.need]
    missing = False
    for source in options.sources:
        for name, path in libraries(source):
            if (kernels := kernels_of(path)) is None:
                continue
            lacking = [dotted(card) for card in needed if not kernels.can_run_on(card)]
            missing = missing or bool(lacking)
            facts = {
                "library": name,
                "sm": [dotted(version) for version in sorted(kernels.machine_code)],
                "ptx": [dotted(version) for version in sorted(kernels.ptx)],
                "lacks": lacking,
            }
            print(json.dumps(facts), flush=True)
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
