"""One application for most tests of this folder; starting one takes about ten seconds."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.serve.running import WEBHOOK_SECRET, RunningApp, running_app
from tests.waiting import until

LEFTOVER_GRACE_S = 60.0  # threads notice between frames that their job has ended


@pytest.fixture(scope="session")
def shared_app(
    tmp_path_factory: pytest.TempPathFactory, private_temp: Path
) -> Iterator[RunningApp]:
    env = {"WEBHOOK_SECRET": WEBHOOK_SECRET}
    args = {"avatars": {"max_gb": 1}, "http": {"cors_origins": ["https://app.example"]}}
    with running_app(tmp_path_factory.mktemp("app"), env=env, **args) as app:
        yield app


@pytest.fixture
def app(shared_app: RunningApp) -> Iterator[RunningApp]:
    """The shared application, checked afterwards: no scratch, no half-written output."""
    yield shared_app
    shared_app.wait_ready()
    until(
        lambda: not any(_left_behind(shared_app)),
        lambda: f"{_left_behind(shared_app)} has not gone",
        LEFTOVER_GRACE_S,
        pause_s=0.1,
    )


def _left_behind(app: RunningApp) -> tuple[list[str], list[str], list[psutil.Process]]:
    results = (app.folder / "results").iterdir()
    strange = [path.name for path in results if path.suffix not in (".mp4", ".json")]
    return app.scratch, strange, app.media_tools()
