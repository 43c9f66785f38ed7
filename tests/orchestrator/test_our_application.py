"""This project's worker as a whole, on Ray and without storage keys, polls the real service."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from orchestrator.service.settings import read_settings
from tests.decoding import frames_of
from tests.orchestrator.databases import RULES, SqliteFiles, open_bench
from tests.orchestrator.object_store import variables_of
from tests.orchestrator.running import INTERNAL_KEY, Running, running_service
from tests.serve.running import JOB_S, RunningApp, media_server, running_app
from tests.waiting import until

MakeClip = Callable[..., Path]
KINDS = {
    "main": {"WORKER_TYPE": "main", "WORKER_ID": "box-1", "POLL_INTERVAL_SEC": "3600"},
    "buffer": {
        "WORKER_MODE": "buffer",
        "BUFFER_WORKER_ID": "box-1",
        "BUFFER_POLL_INTERVAL_SEC": "3600",
    },
}

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Fleet:
    """A service with a bucket, one worker, and media that the worker can fetch."""

    service: Running
    app: RunningApp
    media: str

    def submit(self, job_id: str, audio: str) -> None:
        self.service.submit(
            job_id, video_url=f"{self.media}/face.mp4", audio_url=f"{self.media}/{audio}.wav"
        )

    def wait_for(self, job_id: str, what: str, is_true: Callable[[], bool]) -> None:
        until(
            is_true,
            lambda: f"{self.service.bench.store.get(job_id)}\n{self.app.log[-5:]}\n{what}",
            JOB_S,
            pause_s=0.1,
        )

    def wait_drawn(self, job_id: str) -> None:
        def is_drawn() -> bool:
            counts = self.service.bench.store.get(job_id).counts or {}
            return bool(counts.get("frames_done"))

        self.wait_for(job_id, "no frame was drawn", is_drawn)


@contextmanager
def fleet(
    kind: str, files: SqliteFiles, s3: str, folder: Path, clip: MakeClip, speech: MakeClip
) -> Iterator[Fleet]:
    media = folder / "media"
    media.mkdir()
    shutil.copy(clip(frames=60), media / "face.mp4")
    for name, seconds in (("short", 3.0), ("middle", 8.0), ("long", 60.0)):
        shutil.copy(speech(seconds), media / f"{name}.wav")
    variables = variables_of(s3, prefix=folder.name)
    rules = replace(RULES, upload_s=read_settings(variables).rules().upload_s)
    bench = open_bench(files.new(folder), rules)
    with running_service(bench, **variables) as service, media_server(media) as base:
        env = {"ORCHESTRATOR_BASE_URL": service.url, "PROVIDER": "local", **KINDS[kind]}
        with running_app(folder / "app", env=env, key=INTERNAL_KEY) as app:
            yield Fleet(service, app, base)


@pytest.mark.parametrize("kind", ["main", "buffer"])
def test_a_worker_without_keys_delivers_and_gives_back_what_it_cannot_end(
    kind: str,
    sqlite_files: SqliteFiles,
    s3_server: str,
    tmp_path: Path,
    clip: MakeClip,
    speech: MakeClip,
    private_temp: Path,
) -> None:
    """Claims are held, outputs go to signed addresses, and SIGTERM comes in the middle of a job."""
    with fleet(kind, sqlite_files, s3_server, tmp_path, clip, speech) as each:
        store = each.service.bench.store
        each.service.wait_for_held_claims(1)
        each.submit("a/b", "short")
        each.wait_for("a/b", "it has not ended", lambda: store.get("a/b").state == "succeeded")
        url = each.service.admin.get("/v1/avatar/jobs/a/b").json()["output_url"]
        video = tmp_path / "output.mp4"
        video.write_bytes(httpx.get(url).raise_for_status().content)
        assert len(frames_of(video)) == 75
        assert (store.get("a/b").metrics or {})["bytes"] == video.stat().st_size
        assert [attempt.worker_type for attempt in store.attempts("a/b")] == [kind]
        if kind == "main":
            _stop_at_once(each)
        else:
            _stop_gently(each)


def _stop_at_once(each: Fleet) -> None:
    store = each.service.bench.store
    each.submit("cut", "long")
    each.wait_drawn("cut")
    each.app.process.send_signal(signal.SIGTERM)
    until(lambda: any("stopping" in line for line in each.app.log), "the stop has not begun")
    each.app.process.send_signal(signal.SIGTERM)
    assert each.app.process.wait(JOB_S) == 0
    job = store.get("cut")
    assert (job.state, job.failures, job.interruptions) == ("queued", 0, 1)
    assert store.attempts("cut")[0].error == "The worker ended: It was stopped."
    assert each.service.claim("box-2") is not None


def _stop_gently(each: Fleet) -> None:
    store = each.service.bench.store
    each.submit("ended", "middle")
    each.wait_drawn("ended")
    each.app.process.send_signal(signal.SIGTERM)
    assert each.app.process.wait(JOB_S) == 0
    assert (store.get("ended").state, store.get("ended").attempt) == ("succeeded", 1)
    [worker] = store.workers()
    assert (worker.left_because, worker.held) == ("It was stopped.", 0)
