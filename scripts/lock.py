"""Rewrite requirements/base.lock and requirements/dev.lock from the `.in` files.

    .venv/bin/python scripts/lock.py [--upgrade]

pip resolves everything as for an empty environment and reports it; nothing is installed. Versions
of the old locks are kept unless `--upgrade` is given. torch and what only its CUDA builds need are
left out, because scripts/setup.sh chooses that build by machine.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
HEADER = "# Written by `make lock` from the .in files; do not edit. Installed with --no-deps.\n"
BY_MACHINE = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*)$")
FORBIDDEN = "torchvision"  # docs/dependencies.md says why


def canonical(name: str) -> str:
    """Return a package name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(inputs: list[Path], constraints: list[Path]) -> dict[str, str]:
    """Return name and version of all that the `inputs` need, torch's own part left out."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    for path in [*inputs, REQUIREMENTS / "torch.in"]:
        command += ["-r", str(path)]
    for path in constraints:
        command += ["-c", str(path)]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        subprocess.run([*command, "--report", report.name], check=True)
        found = [item["metadata"] for item in json.load(report)["install"]]
    pins = {canonical(item["name"]): item["version"] for item in found}
    if FORBIDDEN in pins:
        raise SystemExit(f"{FORBIDDEN} would be installed; take out what asks for it")
    return {name: version for name, version in pins.items() if not BY_MACHINE.match(name)}


def write(path: Path, pins: dict[str, str]) -> None:
    """Write one `name==version` a line, sorted."""
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    path.write_text(HEADER + "".join(lines))
    print(f"{path.name}: {len(lines)} packages")


def main() -> None:
    """Resolve base alone, then base and dev together, so that dev never moves a base version."""
    parser = argparse.ArgumentParser(description="Rewrite the locks from the .in files.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest indirect versions")
    upgrade = parser.parse_args().upgrade
    base, dev = REQUIREMENTS / "base.lock", REQUIREMENTS / "dev.lock"
    old = [] if upgrade else [path for path in (base, dev) if path.exists()]
    base_pins = resolve([REQUIREMENTS / "base.in"], old)
    write(base, base_pins)
    inputs = [REQUIREMENTS / "base.in", REQUIREMENTS / "dev.in"]
    all_pins = resolve(inputs, [base, *(path for path in old if path == dev)])
    write(dev, {name: pin for name, pin in all_pins.items() if name not in base_pins})


if __name__ == "__main__":
    main()
