"""Fixtures of downloads: where they go, and that no curl is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import children_named


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where the download goes; afterwards nothing but a complete file may be there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder / "clip.mp4"
    assert [entry.name for entry in folder.iterdir()] in ([], ["clip.mp4"])


@pytest.fixture
def no_child_is_left() -> Iterator[None]:
    """Fail a test that leaves a curl behind."""
    yield
    assert not children_named("curl")
