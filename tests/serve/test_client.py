"""The client for Python and the command line, against a running application."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lipsync_client import AsyncLipsyncClient, Job, JobFailed, LipsyncClient, NewJob, Transfer
from tests.serve.running import JOB_S, ROOT, RunningApp, probe

Clip = Speech = Callable[..., Path]


def frames_of(path: Path) -> int:
    return int(probe(path)["video"]["nb_read_frames"])


def test_files_become_a_video_on_this_disk(
    app: RunningApp, clip: Clip, speech: Speech, tmp_path: Path
) -> None:
    seen: list[Job] = []
    sent: list[Transfer] = []
    with LipsyncClient(str(app.client.base_url)) as client:
        video, audio = client.upload(clip()), client.upload(speech(0.8))
        assert (video.kind, audio.kind, audio.duration_s) == ("video", "audio", 0.8)
        estimate = client.estimate(video, audio, resolution="160x120")
        # The job is not drawn before its first state has been read, so no phase is over by then.
        with app.drawing_stopped() as go_on:

            def see(job: Job) -> None:
                seen.append(job)
                go_on()

            job = client.submit(
                video,
                speech(0.8),
                resolution="160x120",
                on_progress=sent.append,
                params={"crf": 20},
            )
            done = client.wait(job.id, see, timeout_s=JOB_S)
        path = client.download(job.id, tmp_path / "a.mp4")
        assert job.id in [one.id for one in client.jobs("succeeded", limit=200)]
    assert done.metrics is not None
    assert frames_of(path) == estimate.frames == done.metrics["receipt"]["frames"] == 20
    stream = probe(path)["video"]
    assert (stream["width"], stream["height"]) == (estimate.width, estimate.height) == (160, 120)
    assert sent[-1].done == speech(0.8).stat().st_size
    fractions = [job.progress.fraction for job in seen if job.progress is not None]
    assert fractions == sorted(fractions) and seen[-1].status == "succeeded"
    phases = list(dict.fromkeys(job.progress.phase for job in seen if job.progress is not None))
    assert phases[-1] == "completed" and "inferring" in phases


async def test_the_asynchronous_client_runs_jobs_side_by_side(
    app: RunningApp, clip: Clip, speech: Speech, tmp_path: Path
) -> None:
    async with AsyncLipsyncClient(str(app.client.base_url)) as client:
        video = await client.upload(clip())

        async def make(name: str, seconds: float) -> int:
            job = await client.submit(video, speech(seconds), resolution="160x120")
            await client.wait(job.id, timeout_s=JOB_S)
            return frames_of(await client.download(job.id, tmp_path / name))

        assert await asyncio.gather(make("a.mp4", 0.4), make("b.mp4", 0.6)) == [10, 15]
        job = await client.submit(video, video, resolution="160x120")  # it has no sound
        with pytest.raises(JobFailed) as raised:
            await client.wait(job.id, timeout_s=JOB_S)
        assert (raised.value.code, raised.value.retryable) == ("invalid_audio", False)


def test_a_batch_is_submitted_and_waited_for(app: RunningApp, clip: Clip, speech: Speech) -> None:
    with LipsyncClient(str(app.client.base_url)) as client:
        jobs = [NewJob(clip(), speech(s), resolution="160x120") for s in (0.4, 0.6)]
        batch = client.submit_batch(jobs, metadata={"n": 1})
        ended = client.wait_batch(batch.id, timeout_s=JOB_S)
        assert [job.status for job in ended.jobs] == ["succeeded", "succeeded"]
        assert ended.counts["succeeded"] == 2


def test_the_command_line_makes_a_video_on_a_server(
    app: RunningApp, clip: Clip, speech: Speech, tmp_path: Path
) -> None:
    shutil.copy(clip(), tmp_path / "talk.mp4")
    words = ["submit", "talk.mp4", speech(0.6), "--resolution", "160x120", "--preset", "ultrafast"]
    done = subprocess.run(
        [sys.executable, "-m", "lipsync", *words, "--server", str(app.client.base_url), "--json"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=JOB_S,
    )
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["status"], job["output"]) == ("succeeded", "talk-lipsync.mp4")
    assert frames_of(tmp_path / "talk-lipsync.mp4") == 15
    assert "inferring" in done.stderr or "encoding" in done.stderr
