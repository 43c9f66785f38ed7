"""The README says what the code does: its tables, its commands and its links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve_app.config.environment import documented
from serve_app.config.settings import AppArgs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_configuration_tables_are_those_of_the_code() -> None:
    answer = subprocess.run(
        [sys.executable, ROOT / "scripts" / "readme_tables.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr


def test_every_variable_that_is_read_is_listed() -> None:
    read = {variable.name for variable in documented()}
    assert len(read) > 40
    assert {name for name in read if f"`{name}`" not in README} == set()


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")]), ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z]+)|^make ([a-z]+)", README, re.MULTILINE)):
        name = "".join(target)
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@pytest.mark.parametrize("name", ["serve_config.yaml", "serve_config.gpu.yaml"])
def test_shipped_configurations_are_valid(name: str) -> None:
    document = yaml.safe_load((ROOT / name).read_text())
    AppArgs.model_validate(document["applications"][0]["args"])
