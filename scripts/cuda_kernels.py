"""Say which compute capabilities the CUDA libraries of wheels have kernels for.

    python scripts/cuda_kernels.py WHEEL_OR_FOLDER ... [--need 7.5 8.6 12.0]

Nothing is loaded, so neither a GPU nor CUDA is needed: an ELF file has its kernels in the section
`.nv_fatbin`, one container after the other. Each container has entries of machine code for one
architecture (`sm`), or of PTX (`ptx`), which a driver compiles for the card and for later ones.

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

SECTION = b".nv_fatbin"
CONTAINER_MAGIC = 0xBA55ED50
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
    """Return what a library has; None if it is not an ELF file, or has no such section."""
    if path.stat().st_size < 64:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = _section(content)
        return None if place is None else _read_containers(content, *place)


def _section(content: mmap.mmap) -> tuple[int, int] | None:
    """Return offset and length of the section in a 64-bit little-endian ELF file."""
    if content[:6] != b"\x7fELF\x02\x01":
        return None
    (table,) = struct.unpack_from("<Q", content, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", content, 0x3A)
    if not count:
        return None

    def header(index: int) -> tuple[int, int, int]:
        name, _, _, _, offset, length = struct.unpack_from("<IIQQQQ", content, table + index * size)
        return name, offset, length

    _, names, _ = header(names_at)
    for index in range(count):
        name, offset, length = header(index)
        end = content.find(b"\0", names + name)
        if content[names + name : end] == SECTION:
            return offset, length
    return None


def _read_containers(content: mmap.mmap, offset: int, length: int) -> Kernels:
    found, end = Kernels(), offset + length
    while offset + 16 <= end:
        magic, _, header_bytes, payload_bytes = struct.unpack_from("<IHHQ", content, offset)
        if magic != CONTAINER_MAGIC:
            offset += 8  # containers are aligned
            continue
        _read_entries(content, offset + header_bytes, payload_bytes, found)
        offset += header_bytes + payload_bytes
    return found


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
