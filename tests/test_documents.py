"""The documents agree with the code, their links lead somewhere, and their lines are short."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from serve_app.config.settings import AppArgs

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")])
MAX_CHARS = 120
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_configuration_tables_are_those_of_the_code() -> None:
    answer = subprocess.run(
        [sys.executable, ROOT / "scripts" / "configuration_tables.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr


@by_name
def test_links_lead_somewhere(page: Path) -> None:
    for target, _, anchor in links_of(page):
        file = (page.parent / target) if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), f"{target}#{anchor}"


@pytest.mark.parametrize("name", ["README.md", "docs/configuration.md", "docs/develop.md"])
def test_files_that_are_named_exist(name: str) -> None:
    found = re.findall(r"`([\w.-]+/[\w./-]*)`", (ROOT / name).read_text())
    # What set-up and runs make is not in a fresh checkout.
    made = {".cache", ".state", ".venv", "models", "out"}
    tops = {path.name for path in ROOT.iterdir()} - made
    named = {path for path in found if path.partition("/")[0] in tops}
    assert {path for path in named if not (ROOT / path).exists()} == set()


@by_name
def test_lines_are_short(page: Path) -> None:
    """A row of a table has to stand on one line, and so has a node of a diagram; nothing else."""
    text = re.sub(r"^```mermaid\n.*?^```$", "", page.read_text(), flags=re.M | re.S)
    long = [line for line in text.splitlines() if len(line) > MAX_CHARS]
    assert [line for line in long if not line.startswith("|")] == []


@by_name
def test_commands_are_targets_of_the_makefile(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.MULTILINE)
    assert set(used) <= set(targets)


def links_of(page: Path) -> list[tuple[str, str, str]]:
    """Return the relative links of a page, as (path, `#`, heading)."""
    found = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())
    return [target.partition("#") for target in found]


def anchors_of(page: Path) -> set[str]:
    """Return what links to a heading of `page` end in, as GitHub makes it of the heading."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_moving_picture_is_short_and_small() -> None:
    path = ROOT / "docs" / "images" / "demo.webp"
    assert path.stat().st_size < 700_000
    with Image.open(path) as picture:
        n_frames: int = picture.n_frames  # type: ignore[attr-defined]
        durations_ms = []
        for number in range(n_frames):
            picture.seek(number)
            picture.load()
            durations_ms.append(picture.info["duration"])
        assert n_frames > 20 and 10_000 <= sum(durations_ms) < 11_000


def test_the_moving_picture_is_drawn_from_two_videos(
    tmp_path: Path, clip: Callable[..., Path]
) -> None:
    script, video = ROOT / "scripts" / "moving_picture.py", clip(frames=10)
    drawn = tmp_path / "drawn.webp"
    command = [sys.executable, script, video, video, drawn, "--first", "2", "--frames", "6"]
    subprocess.run(command, check=True, timeout=60)
    with Image.open(drawn) as picture:
        assert picture.n_frames == 3  # type: ignore[attr-defined]
        assert picture.width > 1.5 * picture.height  # side by side


@pytest.mark.parametrize(
    "name", ["serve_config.yaml", "serve_config.gpu.yaml", "serve_config.cluster.yaml"]
)
def test_shipped_configurations_are_valid(name: str) -> None:
    document = yaml.safe_load((ROOT / name).read_text())
    AppArgs.model_validate(document["applications"][0]["args"])
