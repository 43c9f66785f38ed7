"""Rewrite the locks in requirements/: the versions, and the SHA-256 of every wheel.

    .venv/bin/python scripts/lock.py [--upgrade | --keep]

pip resolves the `.in` files as for an empty environment and reports it; nothing is installed.
Versions of the old locks are kept unless `--upgrade` is given; with `--keep` nothing is resolved at
all, and only the hashes are asked for again. They are asked of the configured index, for each kind
of machine in `MACHINES`, because the best wheel of a package differs by processor and by the age of
the system's C library. The `.txt` files are pinned by hand; they get their hashes here.

torch and what only its CUDA builds need are in locks of their own, because scripts/setup.sh chooses
that build by machine: `torch-cu13.lock` is written here when torch's version has changed (some GB
pass through); `torch-cpu.lock` is kept by hand, as its header says.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
HEADER = (
    "# Written by `make lock` from the .in files; do not edit.\n"
    "# Installed with --no-deps --require-hashes.\n"
)
BY_MACHINE = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*)$")
FORBIDDEN = "torchvision"  # docs/dependencies.md says why
NO_WHEEL = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)==")
# Processor, and the newest C library that a wheel may ask for: 2.28 is torch's own floor; Ubuntu
# 22.04 and 24.04 have 2.35 and 2.39, Debian 12 and 13 have 2.36 and 2.41.
MACHINES = [(arch, minor) for arch in ("x86_64", "aarch64") for minor in (28, 35, 36, 39, 41)]

Pins = dict[str, str]
Hashes = dict[str, set[str]]


def canonical(name: str) -> str:
    """Return a package name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path) -> Pins:
    """Return the exact pins of a requirements file or lock."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?==([^\s;\\]+)", path.read_text(), re.M)
    return {canonical(name): version for name, version in found}


def report(*arguments: str) -> list[dict[str, object]]:
    """Return what pip would install, by its own report.

    Raises:
        CalledProcessError: it cannot; `stderr` says what is missing.
    """
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command += ["--report", file.name, *arguments]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        installed: list[dict[str, object]] = json.load(file)["install"]
        return installed


def resolve(inputs: list[Path], constraints: list[Path]) -> Pins:
    """Return name and version of all that the `inputs` need."""
    files = [f"-r{path}" for path in inputs]
    with tempfile.TemporaryDirectory() as folder:
        bounds = []
        for path in constraints:  # a constraint with hashes would ask for hashes of everything
            plain = Path(folder) / path.name
            plain.write_text("".join(f"{name}=={pin}\n" for name, pin in read(path).items()))
            bounds.append(f"-c{plain}")
        found = [item["metadata"] for item in report(*files, *bounds)]
    pins = {canonical(item["name"]): item["version"] for item in found}  # type: ignore[index]
    if FORBIDDEN in pins:
        raise SystemExit(f"{FORBIDDEN} would be installed; take out what asks for it")
    return pins


def report_for(arch: str, glibc_minor: int, *arguments: str) -> list[dict[str, object]]:
    """Return what pip would install on such a machine.

    `--platform` takes tags literally, so every older system's tag is named too, newest first.
    """
    tags = [f"manylinux_2_{minor}_{arch}" for minor in range(glibc_minor, 4, -1)]
    tags += [f"{old}_{arch}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    machine = [word for tag in tags for word in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as folder:
        return report(
            *("--only-binary=:all:", "--target", folder, "--python-version", "3.11"),
            *("--implementation", "cp", *machine, *arguments),
        )


def wheels_for(pins: Pins, arch: str, glibc_minor: int) -> dict[str, str]:
    """Return the SHA-256 of the wheel that such a machine takes of each package that has one."""
    wanted = dict(pins)
    while wanted:
        words = [f"{name}=={version}" for name, version in wanted.items()]
        try:
            items = report_for(arch, glibc_minor, "--no-deps", *words)
        except subprocess.CalledProcessError as exc:
            missing = NO_WHEEL.search(exc.stderr)
            if missing is None:
                raise SystemExit(exc.stderr) from exc
            del wanted[canonical(missing[1])]
            continue
        return {
            canonical(item["metadata"]["name"]):  # type: ignore[index]
            item["download_info"]["archive_info"]["hashes"]["sha256"]  # type: ignore[index]
            for item in items
        }
    return {}


def hashes_of(pins: Pins, machines: Iterable[tuple[str, int]] = MACHINES) -> Hashes:
    """Return the SHA-256 of every wheel that one of the `machines` takes."""
    found: Hashes = defaultdict(set)
    for arch, glibc_minor in machines:
        wheels = wheels_for(pins, arch, glibc_minor)
        print(f"glibc 2.{glibc_minor} {arch}: {len(wheels)} of {len(pins)} have a wheel")
        for name, digest in wheels.items():
            found[name].add(digest)
    without = sorted(pins.keys() - found.keys())
    if without:
        raise SystemExit(f"no wheel on any machine: {', '.join(without)}")
    return found


def entry(name: str, version: str, hashes: set[str]) -> str:
    """Return a package's part of a lock."""
    lines = [f"{name}=={version}", *(f"    --hash=sha256:{digest}" for digest in sorted(hashes))]
    return " \\\n".join(lines) + "\n"


def write(path: Path, pins: Pins, hashes: Hashes, header: str = HEADER) -> None:
    """Write one package after the other, sorted."""
    entries = [entry(name, version, hashes[name]) for name, version in sorted(pins.items())]
    path.write_text(header + "".join(entries))
    print(f"{path.name}: {len(entries)} packages")


def rehash(path: Path, hashes: Hashes) -> None:
    """Renew the hashes of a file that is pinned by hand; what its comments say stays."""
    text = re.sub(r" \\\n +--hash=\S+", "", path.read_text())
    lines = []
    for line in text.splitlines(keepends=True):
        pin = re.match(r"([A-Za-z0-9._-]+)==(\S+)", line)
        lines.append(entry(pin[1], pin[2], hashes[canonical(pin[1])]) if pin else line)
    path.write_text("".join(lines))


def resolved(*, upgrade: bool) -> tuple[Pins, Pins]:
    """Resolve base alone, then base and dev together, so that dev never moves a base version."""
    base, dev = REQUIREMENTS / "base.lock", REQUIREMENTS / "dev.lock"
    old = [] if upgrade else [path for path in (base, dev) if path.exists()]
    inputs = [REQUIREMENTS / "base.in", REQUIREMENTS / "torch.in"]
    base_pins = resolve(inputs, old)
    base_pins = {name: pin for name, pin in base_pins.items() if not BY_MACHINE.match(name)}
    inputs.append(REQUIREMENTS / "dev.in")
    with tempfile.TemporaryDirectory() as folder:
        new_base = Path(folder) / "base.lock"
        new_base.write_text("".join(f"{name}=={pin}\n" for name, pin in base_pins.items()))
        all_pins = resolve(inputs, [new_base, *(path for path in old if path == dev)])
    dev_pins = {
        name: pin
        for name, pin in all_pins.items()
        if name not in base_pins and not BY_MACHINE.match(name)
    }
    return base_pins, dev_pins


def lock_cuda(path: Path) -> None:
    """Lock the registry's own build of torch, and the CUDA libraries that only it needs."""
    torch = read(REQUIREMENTS / "torch.in")
    if path.exists() and read(path)["torch"] == torch["torch"]:
        return
    items = report_for("x86_64", 28, f"torch=={torch['torch']}")
    pins = {
        canonical(item["metadata"]["name"]): item["metadata"]["version"]  # type: ignore[index]
        for item in items
    }
    pins = {name: pin for name, pin in pins.items() if BY_MACHINE.match(name)}
    write(path, pins, hashes_of(pins, [("x86_64", 28), ("aarch64", 28)]))


def lock_generator(source: Path, path: Path, *, keep: bool) -> None:
    """Lock the generator of clients, which has an environment of its own."""
    pins = read(path) if keep else resolve([source], [path] if path.exists() else [])
    write(path, pins, hashes_of(pins))


def main() -> None:
    """Write every lock that is not kept by hand."""
    parser = argparse.ArgumentParser(description="Rewrite the locks from the .in files.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--upgrade", action="store_true", help="take the newest indirect versions")
    group.add_argument("--keep", action="store_true", help="keep all versions, renew the hashes")
    options = parser.parse_args()
    base, dev = REQUIREMENTS / "base.lock", REQUIREMENTS / "dev.lock"
    pins = (read(base), read(dev)) if options.keep else resolved(upgrade=options.upgrade)
    by_hand = sorted(REQUIREMENTS.glob("*.txt"))
    everything = {**pins[0], **pins[1]}
    for path in by_hand:
        for name, pin in read(path).items():
            if everything.setdefault(name, pin) != pin:  # its hashes would be those of the other
                raise SystemExit(f"{path.name} pins {name} to {pin}, a lock to {everything[name]}")
    hashes = hashes_of(everything)
    write(base, pins[0], hashes)
    write(dev, pins[1], hashes)
    small = resolve([REQUIREMENTS / "orchestrator.in"], [base])
    write(REQUIREMENTS / "orchestrator.lock", small, hashes)
    sbom = REQUIREMENTS / "sbom.lock"
    bill = read(sbom) if options.keep else resolve([REQUIREMENTS / "sbom.in"], [base, dev])
    write(sbom, bill, hashes_of(bill))
    for path in by_hand:
        rehash(path, hashes)
    generator = REQUIREMENTS / "client-generator.in"
    lock_generator(generator, generator.with_suffix(".lock"), keep=options.keep)
    lock_cuda(REQUIREMENTS / "torch-cu13.lock")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.stderr)
