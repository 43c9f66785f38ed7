"""The walks of docs/architecture.md lead through the code as it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What each walk had before the rooms; a walk that grows back should be noticed.
FORMER_STEPS = {
    "An address, from the request to a checked file": 17,
    "One segment": 9,
    "A claimed job": 12,
}
LOOPS = "serve_app/api/job_runner.py"  # its loops start what no request does
STEP = re.compile(r"^\d+\. `([\w/]+\.py)` `(\w+)`: .+$", re.MULTILINE)


def walks() -> dict[str, list[tuple[str, str]]]:
    """Return the steps, file and function, of each walk."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    chapter = page.partition("## Three walks through the code\n")[2].partition("\n## ")[0]
    parts = re.split(r"^\*\*(.+)\*\*$", chapter, flags=re.MULTILINE)
    return {name: STEP.findall(steps) for name, steps in zip(parts[1::2], parts[2::2], strict=True)}


def functions_of(file: str) -> set[str]:
    """Return the names of the functions that a file defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree_of(file)) if isinstance(node, kinds)}


def names_in(file: str) -> set[str]:
    """Return every name and attribute that a file uses."""
    names: set[str] = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    return names


def tree_of(file: str) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse((ROOT / file).read_text())


def test_there_are_three_walks() -> None:
    assert walks().keys() == FORMER_STEPS.keys()


@pytest.mark.parametrize("name", FORMER_STEPS)
def test_a_walk_leads_from_step_to_step_and_is_shorter_than_it_was(name: str) -> None:
    steps = walks()[name]
    assert 5 < len(steps) < FORMER_STEPS[name]
    used = names_in(steps[0][0]) | names_in(LOOPS)
    for file, function in steps:
        assert function in functions_of(file), f"{file} has no {function}"
        assert (file, function) == steps[0] or function in used, f"nothing leads to {function}"
        used |= names_in(file)
