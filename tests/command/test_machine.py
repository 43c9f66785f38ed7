"""`lipsync doctor`, `config check`, `serve`, `weights` and `run-job`, as processes."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from command_rig import ROOT, command, environment

from musetalk_pipeline.weights.manifest import published
from serve_app.one_shot.variables import VARIABLES
from tests.ports import reserved_port

NO_NETWORK = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """The shipped configuration on a free port of this machine, in a folder of its own."""
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    document["applications"][0]["args"]["metrics_port"] = 0
    path = tmp_path / "serve_config.yaml"
    with reserved_port() as port:
        document["http_options"] = {"host": "127.0.0.1", "port": port}
        path.write_text(yaml.safe_dump(document))
        yield path


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH without ffmpeg and curl."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ffprobe").symlink_to(shutil.which("ffprobe") or "/nonexistent")
    return folder


def checks(done) -> dict[str, dict[str, str]]:
    return {one["name"]: one for one in json.loads(done.stdout)["checks"]}


def test_doctor_finds_a_machine_that_can_serve(lipsync, config):
    done = lipsync("doctor", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["is_ready"] is True
    found = checks(done)
    names = {"Python", "Ray", "ffmpeg", "ffprobe", "curl", "GPU", "torch", "configuration"}
    names |= {"weights", "ports", "working folders", "disk for scratch", "shared memory"}
    assert names <= found.keys()
    assert {name for name, one in found.items() if one["state"] == "missing"} == set()
    assert all(one["remedy"] for one in found.values() if one["state"] != "ok")
    assert found["weights"]["remedy"] == "`lipsync weights fetch` fetches MuseTalk's."


def test_doctor_names_what_helps_where_ffmpeg_is_missing(lipsync, config, bare_path):
    done = lipsync("doctor", "--json", PATH=str(bare_path))
    assert done.returncode == 1
    found = checks(done)
    assert found["ffmpeg"]["state"] == "missing"
    assert "apt-get install -y ffmpeg" in found["ffmpeg"]["remedy"]
    assert (found["ffprobe"]["state"], found["curl"]["state"]) == ("ok", "warning")
    table = lipsync("doctor", PATH=str(bare_path), COLUMNS="100")
    assert table.returncode == 1
    lines = table.stdout.splitlines()
    row = next(index for index, line in enumerate(lines) if line.startswith("ffmpeg "))
    assert "missing" in lines[row] and "apt-get install -y ffmpeg" in lines[row + 1]
    assert "cannot start" in lines[-1]


def test_doctor_says_who_holds_the_port_and_which_key_is_wrong(lipsync, config):
    document = yaml.safe_load(config.read_text())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = document["http_options"]["port"] = taken.getsockname()[1]
        config.write_text(yaml.safe_dump(document))
        done = lipsync("doctor", "--json")
    assert done.returncode == 1
    ports = checks(done)["ports"]
    assert (ports["state"], f"port {port} is taken" in ports["found"]) == ("missing", True)
    config.write_text(config.read_text().replace("engine:", "enginee:"))
    broken = checks(lipsync("doctor", "--json"))["configuration"]
    assert broken["state"] == "missing"
    assert "did you mean `engine`?" in broken["found"]


def test_config_check_names_every_fault_with_its_line(lipsync, config):
    assert lipsync("config", "check").stdout == "serve_config.yaml  valid\n"
    text = config.read_text().replace("engine:", "enginee:").replace("host:", "hosst:")
    config.write_text(text)
    wrong = [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if "enginee:" in line or "hosst:" in line
    ]
    done = lipsync("config", "check", "--json")
    assert done.returncode == 2
    facts = json.loads(done.stdout)
    assert (facts["config"], facts["is_valid"]) == ("serve_config.yaml", False)
    assert sorted(int(fault.split(":")[1]) for fault in facts["faults"]) == wrong
    shown = lipsync("config", "check")
    assert shown.stdout == "serve_config.yaml  2 faults\n"
    assert shown.stderr.splitlines() == facts["faults"]


def test_without_a_configuration_here_the_project_s_own_is_meant(lipsync):
    done = lipsync("config", "check", "--json")
    assert json.loads(done.stdout)["config"] == str(ROOT / "serve_config.yaml")
    assert f"The project's own is used, in {ROOT}." in done.stderr


def test_serve_refuses_what_cannot_be_started(lipsync, config):
    done = lipsync("serve", "nope.yaml")
    assert done.returncode == 2
    assert "there is no configuration file nope.yaml" in done.stderr
    config.write_text(config.read_text().replace("engine:", "enginee:"))
    done = lipsync("serve")
    assert done.returncode == 2
    assert "did you mean `engine`?" in done.stderr


def test_weights_are_verified_without_a_network(lipsync, tmp_path):
    (tmp_path / "models" / "sd-vae").mkdir(parents=True)
    (tmp_path / "models" / "sd-vae" / "config.json").write_text("{}")
    done = lipsync("weights", "verify", "--json", HF_ENDPOINT=NO_NETWORK)
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert facts["models"] == str(tmp_path / "models")  # found by itself
    assert facts["files"]["sd-vae/config.json"] == "wrong size"
    assert "missing" in facts["files"].values()
    table = lipsync("weights", "verify")
    assert table.returncode == 1
    assert "lipsync weights fetch" in table.stderr


def test_weights_that_cannot_be_fetched_are_a_fault_of_this_machine(lipsync, tmp_path):
    models = tmp_path / "models"
    done = lipsync("weights", "fetch", "--models", models, "--mirror", "no address", "--json")
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert (facts["code"], facts["exit_code"]) == ("model_load_failed", 1)
    assert "no address" in facts["message"]


def test_run_job_does_what_the_environment_says(lipsync, clip, speech, tmp_path):
    out = tmp_path / "result.mp4"
    done = lipsync(
        "run-job",
        VIDEO_URL=clip(frames=20).as_uri(),
        AUDIO_URL=speech(0.8).as_uri(),
        OUTPUT_PATH=str(out),
        LIPSYNC_ALLOWED_FOLDERS=f"{clip().parent}:{speech(0.8).parent}",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 20
    assert out.is_file() and out.with_suffix(".json").is_file()
    nothing = lipsync("run-job")
    assert nothing.returncode == 2
    assert "Set VIDEO_URL and AUDIO_URL." in nothing.stderr
    listed = {line.split()[0] for line in lipsync("run-job", "--variables").stdout.splitlines()}
    assert listed == VARIABLES.keys()


def test_a_fetch_that_is_ended_says_that_it_can_be_continued(served_slowly, tmp_path):
    url, is_stuck = served_slowly
    arguments = ("weights", "fetch", "--models", tmp_path / "models", "--mirror", url)
    process = subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert is_stuck.wait(60)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "what has arrived is kept, and the same command continues" in stderr
    assert "Traceback" not in stderr
    kept = [path.name for path in (tmp_path / "models").rglob("*") if path.is_file()]
    assert all(name.endswith((".part", ".lock")) for name in kept), kept


@pytest.fixture
def served_slowly() -> Iterator[tuple[str, threading.Event]]:
    """A server that sends the beginning of a file and then nothing more: its address, and an event
    for that moment.
    """
    is_stuck, is_over = threading.Event(), threading.Event()
    files = published("v15")
    sizes = {file.urls("http://h")[0].removeprefix("http://h"): file.size_bytes for file in files}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = sizes[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(bytes(min(size, 100_000) - 1))
            is_stuck.set()
            is_over.wait(120)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", is_stuck
        is_over.set()
        server.shutdown()
        thread.join()
