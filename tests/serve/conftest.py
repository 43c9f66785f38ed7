"""One application for most tests of this folder; starting one takes about ten seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import RunningApp, running_app


@pytest.fixture(scope="session")
def shared_app(
    tmp_path_factory: pytest.TempPathFactory, private_temp: Path
) -> Iterator[RunningApp]:
    with running_app(tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture
def app(shared_app: RunningApp) -> Iterator[RunningApp]:
    """The shared application, checked afterwards: no scratch, no half-written output."""
    yield shared_app
    shared_app.wait_ready()
    results = list((shared_app.folder / "results").iterdir())
    assert shared_app.scratch == []
    assert [path.name for path in results if path.suffix not in (".mp4", ".json")] == []
    assert shared_app.media_tools() == []
