"""What is in the image: its bytes, its layers, its packages, and no secret."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from image_check import Wrong
from image_check.store import ROOT, Layer

MB = 10**6
SIZES = ROOT / "cluster" / "image" / "sizes.json"
MAX_GROWTH = 0.05
MAX_MOVED_BYTES = 50 * MB
PARTS = {  # what the table names; a file counts for the first part that holds it
    "torch": "app/.venv/lib/*/site-packages/torch",
    "nvidia": "app/.venv/lib/*/site-packages/nvidia",
    "ray": "app/.venv/lib/*/site-packages/ray",
    "other packages": "app/.venv",
    "weights": "app/models",
    "our code": "app",
    "system": "usr",
}
PACKAGES_LISTED = 12  # of the largest ones
# Tokens of the services that a build or a worker may hold, and private keys.
SECRETS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}|K00[0-9][A-Za-z0-9/+]{27}"
    rb"|-----BEGIN (?:RSA |EC |OPENSSH )?PRIVATE KEY-----|dckr_pat_[A-Za-z0-9_-]{20,}"
)
PLANTED = b"hf_" + b"PlantedByTheImageCheckToBeFound0"
LOCKS = ("torch-cpu.lock", "base.lock", "files.txt", "mm-lite.txt", "mm.txt", "mm-source.lock")


def sizes(root: Path) -> dict[str, int]:
    """Return MB by part."""
    counted: set[Path] = set()
    found = {}
    for part, pattern in PARTS.items():
        total = 0
        for top in root.glob(pattern):
            for path in top.rglob("*"):
                if path not in counted and path.is_file() and not path.is_symlink():
                    counted.add(path)
                    total += path.stat().st_size
        found[part] = round(total / MB)
    found["all"] = round(_bytes_below(root) / MB)
    return found


def largest_packages(root: Path) -> dict[str, int]:
    """Return MB of the folders of site-packages that have the most."""
    [site] = root.glob("app/.venv/lib/*/site-packages")
    found = {path.name: round(_bytes_below(path) / MB) for path in site.iterdir() if path.is_dir()}
    return dict(sorted(found.items(), key=lambda item: -item[1])[:PACKAGES_LISTED])


def _bytes_below(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def check_growth(now: Mapping[str, int], before: Mapping[str, int]) -> None:
    """Raise Wrong if the image is more than 5 % larger than it was."""
    if now["all"] > before["all"] * (1 + MAX_GROWTH):
        grown = {part: now[part] - before.get(part, 0) for part in now}
        raise Wrong(
            f"the image has grown from {before['all']} to {now['all']} MB {grown}: take out what "
            "is not needed, or accept it with `make image-check WRITE=--write`"
        )


def moved_bytes(before: Sequence[Layer], after: Sequence[Layer]) -> int:
    """Return the bytes of the layers that a machine with the image `before` has to fetch.

    Raises:
        Wrong: they are too many for a change of code.
    """
    held = {layer.digest for layer in before}
    moved = sum(layer.bytes for layer in after if layer.digest not in held)
    if moved > MAX_MOVED_BYTES or not moved:
        raise Wrong(f"a change of code moves {moved / MB:.1f} MB of layers")
    return moved


# --- secrets --------------------------------------------------------------------------------------


def secrets_in(root: Path, description: bytes) -> list[str]:
    """Return where something looks like a secret: our own files, home folders, the description."""
    found = ["its environment or history"] if SECRETS.search(description) else []
    for top in ("app", "home", "root", "run", "tmp", "etc", "usr/local", "plan", "opt"):
        for path in (root / top).rglob("*"):
            if ".venv" in path.parts or path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size < 10 * MB and SECRETS.search(path.read_bytes()):
                found.append(str(path.relative_to(root)))
    return found


def check_secrets(description: bytes, root: Path) -> None:
    """Raise Wrong if there is a secret in the image, or if one that is planted is not found."""
    found = secrets_in(root, description)
    if found:
        raise Wrong(f"something that looks like a secret is in {', '.join(found)}")
    planted = root / "app" / "planted"
    planted.write_bytes(b"token = " + PLANTED)
    try:
        if secrets_in(root, description) != ["app/planted"]:
            raise Wrong("a planted secret was not found")
        if secrets_in(root, description + PLANTED)[:1] != ["its environment or history"]:
            raise Wrong("a planted secret in the history was not found")
    finally:
        planted.unlink()


# --- the bill of materials ------------------------------------------------------------------------


def check_bill(root: Path) -> int:
    """Compare the bill of materials with the locks and with dpkg's list; return its length.

    Raises:
        Wrong: they differ.
    """
    bill = json.loads((root / "app" / "sbom.cdx.json").read_text())
    if bill["bomFormat"] != "CycloneDX":
        raise Wrong("the bill of materials is not a CycloneDX document")
    listed: dict[str, set[tuple[str, str]]] = {"pypi": set(), "deb": set()}
    for part in bill["components"]:
        listed[part["purl"].partition("/")[0].removeprefix("pkg:")].add(
            (part["name"], part["version"])
        )
    _compare("Python packages", listed["pypi"], locked_packages())
    _compare("Debian packages", listed["deb"], installed_packages(root))
    return len(bill["components"])


def _compare(what: str, listed: set[tuple[str, str]], there: set[tuple[str, str]]) -> None:
    if listed != there:
        raise Wrong(
            f"the {what} of the bill of materials are not those of the image: only in the bill "
            f"{sorted(listed - there)}, missing in it {sorted(there - listed)}"
        )


def locked_packages() -> set[tuple[str, str]]:
    """Return name and version of all that the image should have of Python's packages."""
    found = set()
    for lock in LOCKS:
        text = (ROOT / "requirements" / lock).read_text()
        for name, version in re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^\s;\\]+)", text, re.M):
            found.add((re.sub(r"[-_.]+", "-", name).lower(), version))
    return {each for each in found if each[0] != "mmcv"}  # mmcv-lite takes its place


def installed_packages(root: Path) -> set[tuple[str, str]]:
    """Return name and version of all that dpkg has installed below `root`."""
    words = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show"]
    done = subprocess.run(
        [*words, "--showformat=${Package} ${Version} ${db:Status-Status}\n"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    entries = (line.split() for line in done.stdout.splitlines())
    return {(name, version) for name, version, state in entries if state == "installed"}
