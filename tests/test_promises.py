"""docs/promises.md names a test for each promise; each of them exists and will be collected."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROMISES = ROOT / "docs" / "promises.md"
TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\|(?!---)(?! promise )(.+)\|(.+)\|$", re.MULTILINE)


def rows() -> list[tuple[str, str]]:
    """Return each promise with the text that names its tests."""
    return [(row[0].strip(), row[1].strip()) for row in ROW.findall(PROMISES.read_text())]


@cache
def names_in(path: str) -> frozenset[str]:
    """Return the names of the test functions of a file, without importing it."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.walk(ast.parse(file.read_text()))
    return frozenset(node.name for node in tree if isinstance(node, functions))


def test_every_promise_names_a_test() -> None:
    assert len(rows()) > 20
    assert [promise for promise, proof in rows() if not TEST_ID.search(proof)] == []


@pytest.mark.parametrize(
    ("path", "name"), sorted(set(TEST_ID.findall(PROMISES.read_text()))), ids="::".join
)
def test_named_test_exists(path: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in names_in(path)
