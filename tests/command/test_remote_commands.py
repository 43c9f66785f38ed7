"""`lipsync submit`, `watch`, `ls` and the others, against the real routes of an ingress.

Uploads and real videos are in tests/serve/test_client.py.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from command_rig import command, environment

from lipsync.app import run
from musetalk_pipeline.errors import NoFaceFound
from serve_app.api.job_runner import JobRunner
from serve_app.one_shot.stopping import Stopping
from tests.joints.job_door import Door, Rig, job_door, serving
from tests.joints.test_leaving import at_work

VIDEO, AUDIO = "https://h.example/talk.mp4", "https://h.example/a.wav"
Lipsync = Callable[..., Any]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A worker that runs its jobs."""
    async with job_door(tmp_path) as rig:
        runner = JobRunner(rig.door.services, lambda slot: runner.run_next(slot))
        runner.start()
        yield rig
        await runner.aclose()


@pytest.fixture
def lipsync_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Lipsync:
    """Return `lipsync_at(rig, *words)`: exit code, the JSON that was printed, standard error."""
    work = tmp_path / "work-here"
    work.mkdir()
    monkeypatch.chdir(work)

    async def call(rig: Rig | str, *words: str) -> tuple[int, Any, str]:
        server = rig if isinstance(rig, str) else str(rig.client.base_url)
        code = await asyncio.to_thread(run, [*words, "--server", server, "--json"], Stopping())
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return call


async def test_a_job_is_submitted_followed_and_its_result_is_fetched(
    rig: Rig, lipsync_at: Lipsync
) -> None:
    words = ("--crf", "20", "--resolution", "640x360", "--rest-in-silence", "--id", "mine")
    code, facts, said = await lipsync_at(
        rig, "submit", VIDEO, AUDIO, *words, "--metadata", "order=17", "--face", "point:9,8@7"
    )
    assert (code, facts["id"], facts["status"]) == (0, "mine", "succeeded")
    assert (facts["output"], facts["metadata"]) == ("talk-lipsync.mp4", {"order": "17"})
    assert Path("talk-lipsync.mp4").read_bytes() == b"a video"
    assert "The job mine is submitted." in said
    [done] = rig.graph.ran
    assert (done.options.encode.crf, done.request.resolution) == (20, "640x360")
    assert done.request.params.model_dump(exclude_none=True, mode="json") == {
        "crf": 20, "rest_in_silence": True, "face": {"point": [9.0, 8.0], "frame": 7},
    }  # fmt: skip
    again, facts, _ = await lipsync_at(rig, "submit", VIDEO, AUDIO)
    assert (again, facts["code"]) == (2, "invalid_options")
    assert len(rig.graph.ran) == 1


@pytest.mark.slow
async def test_a_job_that_is_not_waited_for_is_found_again(rig: Rig, lipsync_at: Lipsync) -> None:
    code, facts, _ = await lipsync_at(rig, "submit", VIDEO, AUDIO, "--detach", "--id", "later")
    assert (code, facts["id"]) == (0, "later")
    code, facts, _ = await lipsync_at(rig, "watch", "later")
    assert (code, facts["status"]) == (0, "succeeded")
    code, facts, _ = await lipsync_at(rig, "ls", "--status", "succeeded")
    assert [job["id"] for job in facts["jobs"]] == ["later"]
    code, facts, _ = await lipsync_at(rig, "download", "later")
    assert (code, facts["output"]) == (0, "later.mp4")
    code, facts, _ = await lipsync_at(rig, "download", "later")
    assert (code, facts["code"]) == (2, "file_exists")
    code, facts, _ = await lipsync_at(rig, "download", "later", "--force")
    assert code == 0


@pytest.mark.slow
async def test_a_cancelled_job_is_retried(tmp_path: Path, lipsync_at: Lipsync) -> None:
    async with at_work(tmp_path) as rig:
        code, facts, _ = await lipsync_at(rig, "cancel", "b")
        assert (code, facts["status"]) == (0, "cancelling")
        code, facts, _ = await lipsync_at(rig, "watch", "b")
        assert (code, facts["status"]) == (1, "cancelled")
        code, facts, _ = await lipsync_at(rig, "download", "b")
        assert (code, facts["code"]) == (1, "cancelled")
        code, facts, _ = await lipsync_at(rig, "retry", "b")
        assert (code, facts["status"]) == (0, "queued")
        code, facts, _ = await lipsync_at(rig, "download", "b")
        assert (code, facts["code"]) == (1, "job_not_ended")
        code, facts, _ = await lipsync_at(rig, "retry", "b")
        assert (code, facts["code"]) == (2, "job_not_ended")


async def test_the_exit_code_says_that_an_input_is_at_fault(rig: Rig, lipsync_at: Lipsync) -> None:
    rig.graph.fault = NoFaceFound("No face was found.")
    code, facts, _ = await lipsync_at(rig, "submit", VIDEO, AUDIO)
    assert (code, facts["status"], facts["failure"]["code"]) == (2, "failed", "no_face")


async def test_an_estimate_is_printed(rig: Rig, lipsync_at: Lipsync) -> None:
    code, facts, _ = await lipsync_at(rig, "estimate", VIDEO, AUDIO, "--fps", "25")
    assert (code, facts["frames"], facts["audio_url"]) == (0, 250, AUDIO)
    [measured] = rig.graph.ran
    assert measured.request.params.model_dump(exclude_none=True) == {"fps": 25.0}
    code, facts, _ = await lipsync_at(rig, "estimate", VIDEO, f"upload://{'0' * 32}")
    assert (code, facts["code"]) == (2, "upload_not_found")


async def test_errors_of_the_server_and_on_the_way_to_it_have_codes(
    tmp_path: Path, lipsync_at: Lipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door(tmp_path, INGRESS_API_KEY="the-right-key")
    async with serving(door.app) as client:
        here = str(client.base_url)
        code, facts, _ = await lipsync_at(here, "ls")
        assert (code, facts["code"], facts["exit_code"]) == (2, "key_missing", 2)
        monkeypatch.setenv("INGRESS_API_KEY", "the-right-key")
        assert await lipsync_at(here, "ls") == (0, {"jobs": []}, "")
        code, facts, _ = await lipsync_at(here, "watch", "none")
        assert (code, facts["code"]) == (2, "job_not_found")
    door.registry.close()
    code, facts, _ = await lipsync_at("ftp://h", "ls")
    assert (code, facts["code"]) == (2, "usage")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("none.mp4", AUDIO), "invalid_video"),
        ((VIDEO, AUDIO, "--metadata", "x"), "usage"),
        ((VIDEO, "ftp://h/a.wav"), "invalid_audio"),
        ((VIDEO, AUDIO, "-o", "none/x.mp4"), "invalid_options"),
    ],
)
async def test_mistakes_are_found_before_anything_is_sent(
    lipsync_at: Lipsync, words: tuple[str, ...], code: str
) -> None:
    status, facts, _ = await lipsync_at("http://127.0.0.1:9", "submit", *words)
    assert (status, facts["code"]) == (2, code)


@pytest.mark.slow
async def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(tmp_path: Path) -> None:
    async with at_work(tmp_path) as rig:
        process = await asyncio.create_subprocess_exec(
            *command("watch", "a", "--server", rig.client.base_url),
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        lines = []
        while not lines or not lines[-1].startswith("inferring"):
            lines.append((await process.stderr.readline()).decode())
            assert lines[-1], lines
        assert lines[-1] == "inferring: 20%, 5 of 10 frames\n"
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        assert (process.returncode, out) == (130, b"")
        assert "the job goes on: `lipsync watch a` shows it" in err.decode()
        assert "Traceback" not in err.decode()
        job = await rig.service.get("a")
        assert job is not None and job.status == "running"


@pytest.mark.slow
def test_talking_to_a_server_loads_neither_networks_nor_ray() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from lipsync.app import run; from serve_app.one_shot.stopping import Stopping;"
        "from lipsync import remote; remote.PATIENCE_S = 0.0;"
        "run(['ls', '--server', 'http://127.0.0.1:9'], Stopping());"
        "heavy = {'torch', 'ray', 'av', 'cv2', 'fastapi', 'sqlalchemy', 'uvicorn'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr
    assert "[unreachable]" in done.stderr
