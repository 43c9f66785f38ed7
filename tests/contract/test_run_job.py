"""One job per container: what comes out, where, and with which exit code. Mend 1.16."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import av
import pytest
import yaml

from musetalk_pipeline.errors import (
    DownloadFailed,
    InvalidOptions,
    OutOfGpuMemory,
    SourceUnreachable,
    StageFailed,
)
from orchestrator.net.connections import Network
from serve_app.inputs.download_body import DownloadLimits
from serve_app.inputs.downloads import download
from serve_app.net.addresses import AddressPolicy
from serve_app.one_shot.stopping import Stopping
from serve_app.one_shot.variables import VARIABLES, read_one_shot
from serve_app.run_job import _store, exit_code

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"VIDEO_URL": "https://h/v.mp4", "AUDIO_URL": "https://h/a.wav", "OUTPUT_PATH": "/o.mp4"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"VIDEO_URL": ""}, "VIDEO_URL"),
        ({"AUDIO_URL": ""}, "AUDIO_URL"),
        ({"OUTPUT_URL": "https://h/out"}, "OUTPUT_URL or OUTPUT_PATH"),
        ({"OUTPUT_URL": "ftp://h/out?sig=s3cret", "OUTPUT_PATH": ""}, "OUTPUT_URL"),
        ({"OUTPUT_URL": "/tmp/out.mp4", "OUTPUT_PATH": ""}, "OUTPUT_URL"),
        ({"OUTPUT_PATH": "/"}, "OUTPUT_PATH is a folder"),
        ({"OUTPUT_PATH": "/o.json"}, "OUTPUT_PATH ends in .json"),
        ({"PARAMS": "{"}, "PARAMS"),
        ({"PARAMS": '{"crf": 99}'}, "params.crf"),
        ({"RESOLUTION": "tall"}, "RESOLUTION"),
        ({"ASPECT_RATIO": "9x"}, "ASPECT_RATIO"),
        ({"ASPECT_RATIO": "9:1"}, "ASPECT_RATIO"),
    ],
)
def test_what_is_missing_or_wrong_is_named(change, named):
    with pytest.raises(InvalidOptions, match=named) as caught:
        read_one_shot(GOOD | change)
    assert "s3cret" not in caught.value.message
    assert exit_code(caught.value) == 2


def test_without_a_place_the_result_is_in_the_temporary_folder():
    job = read_one_shot(GOOD | {"OUTPUT_PATH": ""})
    assert job.output_url is None
    assert job.output_path == Path(tempfile.gettempdir()) / "output.mp4"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceUnreachable("No host."), 1),
        (OutOfGpuMemory("Full."), 1),
        (StageFailed("The disk is full."), 1),
        (DownloadFailed("Download failed: 404 Not Found"), 2),
        (InvalidOptions("No."), 2),
    ],
)
def test_the_exit_code_says_whose_fault_it_is(error, code):
    assert exit_code(error) == code


async def test_a_name_that_does_not_resolve_is_a_fault_of_this_machine(tmp_path):
    async def no_dns(host, port):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    limits = DownloadLimits(attempts=1)
    with pytest.raises(SourceUnreachable) as caught:
        await download(
            "https://cdn.example/clip.mp4",
            tmp_path / "video",
            policy=AddressPolicy(),
            limits=limits,
            network=Network(resolve=no_dns),
        )
    assert (exit_code(caught.value), caught.value.code) == (1, "download_failed")


@pytest.fixture
def run_job(tmp_path_factory: pytest.TempPathFactory):
    """Return `run_job(**environment)`; the clips and sounds of the tests may be read."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        with started(tmp_path_factory.getbasetemp(), *arguments, **env) as process:
            stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@contextlib.contextmanager
def started(allowed: Path, *arguments: str, **env: str):
    """A running job; it is dead afterwards."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    own = {"LIPSYNC_ALLOWED_FOLDERS": str(allowed), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app.run_job", *arguments], cwd=ROOT, env=kept | own | env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_help_documents_every_variable_and_exit_code(run_job):
    done = run_job("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in (*VARIABLES, "0  ", "1  ", "2  ", "130", "143"):
        assert f"  {word}" in done.stdout


def test_a_job_ends_as_a_file_with_its_sidecar(run_job, clip, speech, tmp_path):
    out = tmp_path / "result.mp4"
    done = run_job(VIDEO_URL=clip().as_uri(), AUDIO_URL=speech(1.0).as_uri(), OUTPUT_PATH=str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == frames_in(out.read_bytes()) == 25
    sidecar = json.loads(out.with_suffix(".json").read_text())
    assert sidecar["engine"] == "warp"
    assert sidecar["gpu_class"] and sidecar["peak_ram_kb"] > 10_000
    # Those of the served application (README.md, "A request").
    assert set(sidecar["stage_times"]) == {
        "download", "validation", "listen", "inference", "compose", "prepare", "stitch", "upload"
    }  # fmt: skip
    assert sidecar["generation_time_sec"] == sidecar["stage_times"]["inference"]
    receipt = sidecar["receipt"]
    assert receipt["frames_by_gpu_class"] == {sidecar["gpu_class"]: 25}
    assert json.loads(done.stdout)["receipt"].keys() == receipt.keys()
    assert [pool["pool"] for pool in receipt["pools"]] == ["cpu"]
    assert 0 < receipt["paid_s"] <= receipt["wall_s"]  # there is one engine
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.mp4"]


@pytest.mark.slow
def test_segments_may_have_sounds_of_their_own(run_job, clip, speech, tmp_path):
    out = tmp_path / "result.mp4"
    span = {"start_s": 0.2, "end_s": 0.6, "audio": {"url": speech(0.6).as_uri()}}
    done = run_job(
        VIDEO_URL=clip().as_uri(),
        AUDIO_URL=speech(1.0).as_uri(),
        OUTPUT_PATH=str(out),
        PARAMS=json.dumps({"segments": [span], "video_end_s": 0.8}),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == frames_in(out.read_bytes()) == 20
    receipt = json.loads(done.stdout)["receipt"]
    assert list(receipt["frames_by_gpu_class"].values()) == [10]


def test_a_link_in_the_place_of_the_output_is_not_followed(tmp_path):
    """Mend 4.7: the default folder is that of all users' temporary files."""
    (tmp_path / "video").write_text("video")
    (tmp_path / "theirs").write_text("theirs")
    for name in ("o.mp4", "o.json", ".o.mp4.part", ".o.json.part"):
        (tmp_path / name).symlink_to("theirs")
    job = read_one_shot(GOOD | {"OUTPUT_PATH": str(tmp_path / "o.mp4")})
    _store(job, tmp_path / "video", lambda seconds: b"{}", Stopping())
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "o.mp4").read_text() == "video"


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


def test_the_folder_of_the_output_is_made_and_an_odd_size_is_warned_of(
    run_job, clip, speech, tmp_path
):
    out = tmp_path / "deep" / "er" / "out.mp4"
    done = run_job(
        VIDEO_URL=clip().as_uri(),
        AUDIO_URL=speech(1.0).as_uri(),
        OUTPUT_PATH=str(out),
        RESOLUTION="161x121",
    )
    assert done.returncode == 0, done.stderr
    [warning] = json.loads(done.stdout)["warnings"]
    assert "160x120" in warning
    assert frames_in(out.read_bytes()) == 25


def test_an_output_that_cannot_be_written_is_exit_code_1_before_anything_is_fetched(
    run_job, tmp_path
):
    (tmp_path / "file").touch()
    with source() as (url, asked, _):
        done = run_job(VIDEO_URL=url, AUDIO_URL=url, OUTPUT_PATH=str(tmp_path / "file" / "o.mp4"))
        assert not asked.is_set()
    assert done.returncode == 1
    assert "OUTPUT_PATH" in done.stderr


def test_an_unusable_output_address_is_refused_before_anything_is_fetched(run_job):
    with source() as (url, asked, _):
        done = run_job(VIDEO_URL=url, AUDIO_URL=url, OUTPUT_URL="s3://bucket/out.mp4")
        assert not asked.is_set()
    assert (done.returncode, done.stdout) == (2, "")
    assert "OUTPUT_URL" in done.stderr and "only http and https" in done.stderr


def test_a_source_that_refuses_is_exit_code_1_and_one_that_has_nothing_2(run_job, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        closed = f"http://127.0.0.1:{held.getsockname()[1]}/v.mp4"
    place = {"OUTPUT_PATH": str(tmp_path / "o.mp4"), "ALLOWED_SOURCE_HOSTS": "127.0.0.1"}
    refused = run_job(VIDEO_URL=closed, AUDIO_URL=closed, **place)
    assert refused.returncode == 1, refused.stderr
    assert "connection could not be made" in refused.stderr
    with source(status=404) as (url, _, _):
        gone = run_job(VIDEO_URL=url, AUDIO_URL=url, **place)
    assert gone.returncode == 2, gone.stderr
    assert "404" in gone.stderr


def test_a_broken_configuration_is_exit_code_1_in_one_sentence(run_job, tmp_path):
    for text in ("applications: [", "applications: []", "applications: [{args: {enginee: warp}}]"):
        (tmp_path / "config.yaml").write_text(text)
        done = run_job(**GOOD, SERVE_CONFIG=str(tmp_path / "config.yaml"))
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert "The configuration" in line
    assert "did you mean `engine`" in line


def test_the_blocks_of_the_configuration_are_those_of_the_job(run_job, clip, speech, tmp_path):
    """Mend 3.3: `driver.block_s` had no reader. Every block is encoded on its own, from a key
    frame.
    """
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"][0]["args"]["driver"] = {"block_s": 0.2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "out.mp4"
    done = run_job(
        VIDEO_URL=clip().as_uri(),
        AUDIO_URL=speech(1.0).as_uri(),
        OUTPUT_PATH=str(out),
        SERVE_CONFIG=str(tmp_path / "config.yaml"),
    )
    assert done.returncode == 0, done.stderr
    with av.open(str(out)) as container:
        keys = [frame.key_frame for frame in container.decode(video=0)]
    assert [place for place, is_key in enumerate(keys) if is_key] == [0, 5, 10, 15, 20]


# --- signals --------------------------------------------------------------------------------------


def test_sigterm_during_a_download_leaves_nothing(tmp_path, tmp_path_factory):
    with source(half=True) as (url, _, is_stuck):
        env = {"VIDEO_URL": url, "AUDIO_URL": url, "ALLOWED_SOURCE_HOSTS": "127.0.0.1"}
        stop_when(is_stuck.wait, env, tmp_path, tmp_path_factory)


def test_sigterm_while_frames_are_drawn_leaves_nothing(clip, speech, tmp_path, tmp_path_factory):
    env = {"VIDEO_URL": clip().as_uri(), "AUDIO_URL": speech(60.0).as_uri()}
    stop_when(None, env, tmp_path, tmp_path_factory)


def test_sigterm_during_an_upload_leaves_nothing(clip, speech, tmp_path, tmp_path_factory):
    with source(half=True) as (url, asked, _):
        env = {"VIDEO_URL": clip().as_uri(), "AUDIO_URL": speech(1.0).as_uri(), "OUTPUT_URL": url}
        stop_when(asked.wait, env, tmp_path, tmp_path_factory)


def stop_when(wait, env, tmp_path, tmp_path_factory):
    """Start a job, send SIGTERM once `wait` returns (None: once it draws), look what is left."""
    temp, out = tmp_path / "temp", tmp_path / "out"
    temp.mkdir()
    if "OUTPUT_URL" not in env:
        env = env | {"OUTPUT_PATH": str(out / "o.mp4")}
    with started(tmp_path_factory.getbasetemp(), TMPDIR=str(temp), **env) as process:
        if wait is None:
            said = ""
            while "compose" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
        else:
            assert wait(100)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (143, "")
    assert "Stopped by SIGTERM; nothing is left behind." in stderr
    assert "Traceback" not in stderr
    assert list(temp.iterdir()) == []
    assert not out.exists() or list(out.iterdir()) == []


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


@contextlib.contextmanager
def source(status: int = 200, half: bool = False):
    """A server of one file: its address, an event set by the first request, and one set when it
    stands still. `half`: it sends half of what it announces, and then nothing more.
    """
    asked, is_stuck, over = threading.Event(), threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            self.send_response(status)
            self.send_header("Content-Length", "200000" if half else "0")
            self.end_headers()
            if half:
                self.wfile.write(bytes(100_000))
                is_stuck.set()
                over.wait(120)

        def do_PUT(self):
            asked.set()
            over.wait(120)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/clip.mp4", asked, is_stuck
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
