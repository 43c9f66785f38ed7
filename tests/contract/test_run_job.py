"""One job per container: what comes out, where, and with which exit code."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import av
import pytest

from musetalk_pipeline.errors import InvalidOptions
from serve_app.run_job import read_one_shot

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"VIDEO_URL": "https://h/v.mp4", "AUDIO_URL": "https://h/a.wav", "OUTPUT_PATH": "/o.mp4"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"VIDEO_URL": ""}, "VIDEO_URL"),
        ({"AUDIO_URL": ""}, "AUDIO_URL"),
        ({"OUTPUT_PATH": ""}, "OUTPUT_URL or OUTPUT_PATH"),
        ({"OUTPUT_URL": "https://h/out"}, "OUTPUT_URL or OUTPUT_PATH"),
        ({"PARAMS": "{"}, "PARAMS"),
        ({"PARAMS": '{"crf": 99}'}, "params.crf"),
    ],
)
def test_what_is_missing_or_wrong_is_named(change, named):
    with pytest.raises(InvalidOptions, match=named):
        read_one_shot(GOOD | change)


@pytest.fixture
def run_job(tmp_path_factory: pytest.TempPathFactory):
    """Return `run_job(**environment)`; the clips and sounds of the tests may be read."""

    def run(**env: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        folder = str(tmp_path_factory.getbasetemp())
        own = {"LIPSYNC_ALLOWED_FOLDERS": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "serve_app.run_job"]
        return subprocess.run(
            command, cwd=ROOT, env=kept | own | env, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    return run


def test_a_job_ends_as_a_file_with_its_sidecar(run_job, clip, speech, tmp_path):
    out = tmp_path / "result.mp4"
    done = run_job(VIDEO_URL=clip().as_uri(), AUDIO_URL=speech(1.0).as_uri(), OUTPUT_PATH=str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == frames_in(out.read_bytes()) == 25
    assert json.loads(out.with_suffix(".json").read_text())["engine"] == "warp"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.mp4"]


def test_a_job_ends_at_a_signed_address(run_job, clip, speech):
    with put_target() as (url, received):
        done = run_job(
            VIDEO_URL=clip().as_uri(),
            AUDIO_URL=speech(1.0).as_uri(),
            OUTPUT_URL=f"{url}/result.mp4?X-Signature=s3cret",
        )
    assert done.returncode == 0, done.stderr
    [(path, body)] = received
    assert path == "/result.mp4?X-Signature=s3cret"
    assert frames_in(body) == 25
    assert "s3cret" not in done.stdout + done.stderr


def test_bad_input_is_exit_code_2_and_leaves_nothing(run_job, speech, tmp_path):
    done = run_job(
        VIDEO_URL=speech(1.0).as_uri(),
        AUDIO_URL=speech(1.0).as_uri(),
        OUTPUT_PATH=str(tmp_path / "out.mp4"),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid_video" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_exit_code_1(run_job, clip, speech, tmp_path):
    done = run_job(
        VIDEO_URL=clip().as_uri(),
        AUDIO_URL=speech(1.0).as_uri(),
        OUTPUT_PATH=str(tmp_path / "absent" / "out.mp4"),
    )
    assert done.returncode == 1
    assert "OUTPUT_PATH" in done.stderr


def frames_in(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


@contextlib.contextmanager
def put_target():
    """A store that takes PUT: its address, and the paths and bodies that it received."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
