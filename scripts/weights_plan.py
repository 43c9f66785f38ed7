"""Spread weight files over the layers of an image, before any of them is fetched.

    python scripts/weights_plan.py LIST OUT [--hub URL] [--layer-gb 10] [--layers 16]

LIST names the files: `{"files": [{"path", "source", "bytes", "sha256"}]}`. `path` is below models/,
`source` is `repository@revision//file` of the hub or a URL. The folder OUT then has the same list
as `weights.json`, in which each file has its `layer`, and for each layer what
cluster/image/fetch-layer.sh reads: curl's configurations for the hub and for other servers, and the
digests. The rules:

1. No layer is larger than `--layer-gb`, because a registry refuses larger ones. A file is not
   divided, since joining it again at each start would take its size once more.
2. There are as many layers as Dockerfile.gpu has instructions for. Those that are left over are
   empty.
3. The disk has room for twice the sum: the files, and the layers that are made of them.

It needs the standard library only, because it runs in the first stage of the build. Exit code 1:
the sentence on standard error names the rule that is broken.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

GB = 10**9
SPARE_BYTES = 2 * GB  # guess: what a builder writes in addition
File = dict[str, Any]


class Unfit(Exception):
    """The list cannot become an image; the message is a sentence."""


def read_files(path: Path) -> list[File]:
    """Return the files of a list.

    Raises:
        Unfit: an entry is not as it has to be.
    """
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        for file in files:
            _check(file)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Unfit(f"{path} is not a list of weight files: {exc!r}") from exc
    paths = [file["path"] for file in files]
    if not files or len(set(paths)) < len(paths):
        raise Unfit(f"{path} names no file, or one path twice")
    return list(files)


def _check(file: File) -> None:
    path = PurePosixPath(file["path"])
    if path.is_absolute() or ".." in path.parts or not re.fullmatch(r"[\w./-]+", str(path)):
        raise ValueError(
            f"path {file['path']!r} has to be below models/, without special characters"
        )
    if not isinstance(file["bytes"], int) or file["bytes"] <= 0:
        raise ValueError(f"bytes of {path} has to be a positive number")
    if not re.fullmatch(r"[0-9a-f]{64}", file["sha256"]):
        raise ValueError(f"sha256 of {path} has to be 64 hexadecimal digits")
    if not re.fullmatch(r'https?://[^\s"\\]+|[\w.-]+/[\w.-]+@[\w.-]+//[^\s"\\]+', file["source"]):
        raise ValueError(f"source of {path} has to be a URL or repository@revision//file")


def spread(files: list[File], layer_bytes: int, layers: int) -> list[File]:
    """Return the files with their `layer`, from 1 on: the largest first, each where it first fits.

    Raises:
        Unfit: a file is larger than a layer, or more layers are needed than there are.
    """
    filled: list[int] = []
    planned = []
    for file in sorted(files, key=lambda file: (-file["bytes"], file["path"])):
        size = file["bytes"]
        if size > layer_bytes:
            raise Unfit(
                f"{file['path']} has {size / GB:.1f} GB, and a layer at most "
                f"{layer_bytes / GB:.1f}: give the limit of your registry as LAYER_GB, or use "
                "files in several shards"
            )
        at = next((i for i, held in enumerate(filled) if held + size <= layer_bytes), len(filled))
        if at == len(filled):
            filled.append(0)
        filled[at] += size
        planned.append(file | {"layer": at + 1})
    if len(filled) > layers:
        raise Unfit(
            f"the files need {len(filled)} layers of {layer_bytes / GB:.1f} GB, and Dockerfile.gpu "
            f"makes {layers}: give a larger LAYER_GB, or add instructions there"
        )
    return planned


def check_space(files: list[File], folder: Path) -> None:
    """Raise Unfit if the disk of `folder` has no room for the build."""
    needed = 2 * sum(file["bytes"] for file in files) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Unfit(
            f"the build needs {needed / GB:.1f} GB, twice the files and some room, and the disk of "
            f"{folder} has {free / GB:.1f} GB free"
        )


def write_plan(planned: list[File], out: Path, hub: str) -> None:
    """Write the list, and what is fetched and compared for each layer."""
    (out / "weights.json").write_text(json.dumps({"files": planned}, indent=1) + "\n")
    for layer in sorted({file["layer"] for file in planned}):
        inside = [file for file in planned if file["layer"] == layer]
        elsewhere = [file for file in inside if "://" in file["source"]]
        of_hub = [file for file in inside if file not in elsewhere]
        name = f"layer-{layer}"
        (out / f"{name}.hub").write_text("".join(_curl(file, hub) for file in of_hub))
        (out / f"{name}.elsewhere").write_text("".join(_curl(file, hub) for file in elsewhere))
        digests = (f"{file['sha256']}  {file['path']}\n" for file in inside)
        (out / f"{name}.sha256").write_text("".join(digests))
        print(f"layer {layer}: {sum(file['bytes'] for file in inside) / GB:.2f} GB")


def _curl(file: File, hub: str) -> str:
    """Return the entry of a file in a configuration of curl."""
    url = file["source"]
    if "://" not in url:
        place, _, name = url.partition("//")
        repository, _, revision = place.partition("@")
        url = f"{hub.rstrip('/')}/{repository}/resolve/{revision}/{quote(name)}"
    return f'url = "{url}"\noutput = "{file["path"]}"\n'


def main(arguments: list[str] | None = None) -> int:
    """Plan, and return the exit code."""
    parser = argparse.ArgumentParser(description="Spread weight files over layers.")
    parser.add_argument("list", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hub", default="https://huggingface.co", metavar="URL")
    parser.add_argument("--layer-gb", type=float, default=10.0)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args(arguments)
    try:
        files = read_files(options.list)
        planned = spread(files, round(options.layer_gb * GB), options.layers)
        check_space(files, options.out)
    except Unfit as unfit:
        print(f"weights-plan: {unfit}", file=sys.stderr)
        return 1
    write_plan(planned, options.out, options.hub)
    return 0


if __name__ == "__main__":
    sys.exit(main())
