"""`python -m tests.parity`: check a golden set, print a table, exit 1 on a miss.

The table is printed whatever happens. What a set lacks, and what cannot be loaded or computed, is a
row of its own with the reason, and a miss.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from musetalk_pipeline.options import Version

from .audio_checks import check_long, check_resample, check_short
from .chain import check_chain
from .frame_checks import VersionChecks, check_coords
from .golden import GoldenSet, IncompleteSet
from .report import EXACT, Row, miss, table

VERSIONS: tuple[Version, ...] = get_args(Version)
REASON_CHARS = 200
Checks = dict[str, Callable[[], Iterator[Row]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return 0 if every array is within its tolerance, else 1."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        golden = GoldenSet(
            folder=options.golden,
            models=options.models,
            frames_folder=options.frames,
            landmarks_file=options.landmarks,
            wav=options.wav,
            scratch=Path(scratch),
        )
        rows = run_checks(golden, options.versions, options.only)
    print(table(rows))
    for version in VERSIONS:
        if version not in options.versions:
            print(f"{version} not asked for: nothing of it is checked")
    return 0 if rows and all(row.is_met for row in rows) else 1


def run_checks(golden: GoldenSet, versions: Sequence[Version], only: str = "") -> list[Row]:
    """Run every check whose name begins with `only`."""
    rows: list[Row] = []
    for name, check in _checks(golden, versions).items():
        if not name.startswith(only):
            continue
        print(f"checking {name}", file=sys.stderr)
        for part in (partial(_compare_listing, golden, name), check):
            try:
                rows.extend(part())  # what it yields before it fails stays
            except Exception as error:  # a set from elsewhere may be wrong in any way
                rows.append(miss(name, "-", EXACT, _reason(error)))
    return rows


def _compare_listing(golden: GoldenSet, name: str) -> Iterator[Row]:
    """Look for every array that meta.json lists for a file: a lost one is compared nowhere."""
    listed = golden.meta.get("stages", {}).get(name, {})
    if not golden.has(name):
        return  # its check says so
    arrays = golden.load(name)
    for key, entry in listed.items():
        if key.startswith("_"):  # `_bytes`: the file's size
            continue
        if key not in arrays:
            yield miss(name, key, EXACT, f"{name}.npz lacks {key}, which meta.json lists")
        elif list(arrays[key].shape) != entry[0]:
            found, shape = tuple(arrays[key].shape), tuple(entry[0])
            yield miss(name, key, EXACT, f"shape {found}, in meta.json {shape}")


def _check_meta(golden: GoldenSet, names: Sequence[str]) -> Iterator[Row]:
    """Without a list of its arrays a set may have lost some unseen."""
    if not golden.meta:
        raise IncompleteSet("meta.json is not in the set")
    unlisted = [name for name in names if name not in golden.meta.get("stages", {})]
    if unlisted:
        raise IncompleteSet(f"meta.json lists no arrays of {', '.join(unlisted)}")
    yield Row("meta", "stages", 0.0, 0.0, EXACT, f"{len(names)} files are listed")


def _reason(error: Exception) -> str:
    """Return why a check ended, in one line."""
    text = " ".join(str(error).split())[:REASON_CHARS]
    return text if isinstance(error, IncompleteSet) else f"{type(error).__name__}: {text}"


def _checks(golden: GoldenSet, versions: Sequence[Version]) -> Checks:
    """Return the checks by the name of their file; only the chains have none."""
    seen = {version: VersionChecks(golden, version) for version in versions}
    checks: Checks = {
        "audio_short": partial(check_short, golden),
        "audio_resample": partial(check_resample, golden),
        "audio_long": partial(check_long, golden),
        "coords": partial(check_coords, golden),
    }
    if "v15" in seen:
        checks["v15_cheeks"] = seen["v15"].check_cheeks
    for version, each in seen.items():
        checks |= {
            f"{version}_crop": each.check_crop,
            f"{version}_latents": each.check_latents,
            f"{version}_unet": each.check_unet,
            f"{version}_decoded": each.check_decoded,
            f"{version}_parse": each.check_parse,
            f"{version}_blended": each.check_blended,
            f"{version}_realtime": each.check_realtime,
        }
    chains: Checks = {f"{version} chain": partial(check_chain, seen[version]) for version in seen}
    return {"meta": partial(_check_meta, golden, list(checks))} | checks | chains


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    for name, text in (
        ("golden", "folder of the golden npz and wav files"),
        ("models", "weights in the published layout"),
        ("frames", "folder of the source frames, 00000000.png onwards"),
        ("landmarks", "npz of (n, 68, 2) points of those frames"),
        ("wav", "the speech that the long sound is made of"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    parser.add_argument(
        "--versions",
        nargs="+",
        choices=VERSIONS,
        default=VERSIONS,
        help="of a set that has no other; all by default, and one that is not there is a miss",
    )
    parser.add_argument("--only", default="", help="checks whose name begins with this")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
