"""What the tests of this folder share: the media of their jobs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serve.running import LOSSLESS, media_server


@dataclass
class Media:
    """A clip and speech on a server of loopback. `fetched`: the paths asked for, in order."""

    base: str = ""
    fetched: list[str] = field(default_factory=list)

    def job(self, job_id: str, speech: str = "long.wav") -> dict[str, Any]:
        """Return the body of a job whose frames can be compared bit by bit."""
        return {
            "musetalk_job_id": job_id,
            "video_url": f"{self.base}/clip.mp4",
            "audio_url": f"{self.base}/{speech}",
            "params": LOSSLESS,
        }


@pytest.fixture(scope="session")
def media(clip: Any, speech: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Media]:
    folder: Path = tmp_path_factory.mktemp("media")
    shutil.copy(clip(frames=50), folder / "clip.mp4")
    shutil.copy(speech(6.0), folder / "long.wav")
    shutil.copy(speech(1.0), folder / "short.wav")
    media = Media()
    with media_server(folder, media.fetched.append) as media.base:
        yield media
