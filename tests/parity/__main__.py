"""`python -m tests.parity`: check a golden set, print a table, exit 1 on a miss."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from musetalk_pipeline.options import Version

from .chain import check_chain
from .golden import GoldenSet
from .hearing import check_long, check_resample, check_short
from .report import EXACT, Row, miss, table
from .seeing import VersionChecks

VERSIONS: tuple[Version, ...] = ("v15", "v1")


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
        rows = run_checks(golden, options.only)
    print(table(rows))
    return 0 if rows and all(row.is_met for row in rows) else 1


def run_checks(golden: GoldenSet, only: str = "") -> list[Row]:
    """Run every check whose name begins with `only`. A file that the set lacks is a miss."""
    rows: list[Row] = []
    for name, check in _checks(golden).items():
        if not name.startswith(only):
            continue
        print(f"checking {name}", file=sys.stderr)
        needed = name.removesuffix(" chain")
        if needed == name and not golden.has(name):
            rows.append(miss(name, "-", EXACT, f"{name}.npz is not in the set"))
            continue
        try:
            rows += check()
        except (KeyError, FileNotFoundError) as error:
            rows.append(miss(name, "-", EXACT, f"the set lacks {error}"))
    return rows


def _checks(golden: GoldenSet) -> dict[str, Callable[[], list[Row]]]:
    checks: dict[str, Callable[[], list[Row]]] = {
        "audio_short": lambda: check_short(golden),
        "audio_resample": lambda: check_resample(golden),
        "audio_long": lambda: check_long(golden),
    }
    for version in VERSIONS:
        seen = VersionChecks(golden, version)
        if version == "v15":
            checks["coords"] = seen.check_coords
            checks["v15_cheeks"] = seen.check_cheeks
        checks |= {
            f"{version}_crop": seen.check_crop,
            f"{version}_latents": seen.check_latents,
            f"{version}_unet": seen.check_unet,
            f"{version}_decoded": seen.check_decoded,
            f"{version}_parse": seen.check_parse,
            f"{version}_blended": seen.check_blended,
            f"{version}_realtime": seen.check_realtime,
            f"{version} chain": lambda seen=seen: check_chain(seen),  # type: ignore[misc]
        }
    return checks


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
    parser.add_argument("--only", default="", help="checks whose name begins with this")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
