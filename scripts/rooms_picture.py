"""Draw the rooms of docs/architecture.md and their arrows, from the graph of all imports.

    .venv/bin/python scripts/rooms_picture.py [--check]

An arrow means "imports". One that follows from others is left out: with `api → jobs → graph`, there
is no arrow from `api` to `graph`. `--check` changes nothing and fails if the page is not what would
be written.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- rooms -->\n", "<!-- /rooms -->"
# Drawn with their rooms. Other packages are one box.
ROOMY = ("serve_app", "musetalk_pipeline", "orchestrator")

Arrows = dict[str, set[str]]


def boxes(graph: grimp.ImportGraph) -> dict[str, str]:
    """Return the box of each module: its room, or the package if that is one box.

    The files at the root of a package are in two boxes: `PACKAGE.above` has those that import from
    rooms, `PACKAGE.below` those that rooms import from.
    """
    found = {}
    for module in graph.modules - set(ROOMY):
        package, _, rest = module.partition(".")
        room = f"{package}.{rest.partition('.')[0]}"
        if package not in ROOMY:
            found[module] = package
        elif (ROOT / room.replace(".", "/")).is_dir():
            found[module] = room
        else:
            upstream = graph.find_upstream_modules(module)
            is_above = any(
                name.count(".") > 1 for name in upstream if name.startswith(f"{package}.")
            )
            found[module] = f"{package}.{'above' if is_above else 'below'}"
    return found


def arrows(box: dict[str, str], graph: grimp.ImportGraph) -> Arrows:
    """Return which boxes each box imports from."""
    found: Arrows = {name: set() for name in box.values()}
    for module in box:
        for imported in graph.find_modules_directly_imported_by(module):
            found[box[module]].add(box.get(imported, box[module]))
    return {name: others - {name} for name, others in found.items()}


def read_graph() -> grimp.ImportGraph:
    """Return the imports of our packages at run time."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    sys.path.insert(0, str(ROOT))
    return grimp.build_graph(
        *settings["root_packages"], exclude_type_checking_imports=True, cache_dir=None
    )


def reached(found: Arrows, start: str) -> set[str]:
    """Return the boxes that can be reached from `start`."""
    seen: set[str] = set()
    waiting = [*found[start]]
    while waiting:
        room = waiting.pop()
        if room not in seen:
            seen.add(room)
            waiting += found[room]
    return seen


def shortest(found: Arrows) -> Arrows:
    """Leave out the arrows that follow from others."""
    return {
        room: {
            other
            for other in others
            if not any(other in reached(found, via) for via in others - {other})
        }
        for room, others in found.items()
    }


def label(name: str, box: dict[str, str]) -> str:
    """Return what is written into a box: the room, or the files that it stands for."""
    room = name.rpartition(".")[2]
    if room not in ("above", "below"):
        return room
    files = sorted(module.rpartition(".")[2] for module, at in box.items() if at == name)
    return ", ".join(file for file in files if file != "__main__") or "__main__"


def drawn(found: Arrows, box: dict[str, str]) -> str:
    """Return the picture as a Mermaid flow chart, which GitHub shows."""
    lines = ["```mermaid", "flowchart TD"]
    for package in ROOMY:
        lines.append(f"  subgraph {package}")
        lines += [
            f'    {name}["{label(name, box)}"]'
            for name in sorted(found)
            if name.startswith(f"{package}.")
        ]
        lines.append("  end")
    lines += [f"  {name} --> {other}" for name in sorted(found) for other in sorted(found[name])]
    # Dots mean something else in Mermaid.
    return "\n".join([*(line.replace(".", "_") for line in lines), "```", ""])


def main() -> None:
    """Rewrite the page, or check it."""
    old = PAGE.read_text()
    before, found, rest = old.partition(START)
    if not found or END not in rest:
        raise SystemExit(f"{PAGE.name} must have the markers of the picture")
    graph = read_graph()
    box = boxes(graph)
    picture = drawn(shortest(arrows(box, graph)), box)
    new = before + START + picture + END + rest.partition(END)[2]
    if "--check" in sys.argv[1:]:
        if new != old:
            raise SystemExit(f"{PAGE.name} is out of date: run scripts/rooms_picture.py")
        return
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
