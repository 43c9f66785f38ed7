"""The demo's own parts: its input, its child's environment, and stopping only what it started."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from demo import __main__ as demo
from demo import application
from demo import media as demo_media
from musetalk_pipeline.faces import make_detector
from serve_app.config.ports import free_port
from serve_app.config.settings import AppArgs
from tests.children import command_of
from tests.decoding import frames_of
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_media.demo_video(tmp_path_factory.mktemp("demo"))


def test_demo_video_is_a_moving_picture_with_a_face_throughout(face: Path) -> None:
    frames = frames_of(face)
    assert len(frames) == demo_media.FPS * demo_media.SECONDS
    assert frames[0].shape == (demo_media.SIDE_PX, demo_media.SIDE_PX, 3)
    some = list(frames[::40])
    assert np.abs(some[0].astype(int) - some[2]).mean() > 2  # it moves
    assert all(
        found is not None for found in make_detector("mesh", Path("models")).detect(list(some))
    )


def test_demo_video_is_made_once(face: Path) -> None:
    made = face.stat().st_mtime_ns
    assert demo_media.demo_video(face.parent) == face
    assert face.stat().st_mtime_ns == made


def test_demo_speech_prefers_the_recording(tmp_path: Path) -> None:
    recording = tmp_path / "root" / demo_media.SPEECH
    recording.parent.mkdir(parents=True)
    recording.write_bytes(b"recorded")
    found = demo_media.demo_speech(tmp_path / "cache", (tmp_path / "none", tmp_path / "root"))
    # Beside the demo's video, where the examples of the documents expect it.
    assert found == tmp_path / "cache" / "speech.wav"
    assert found.read_bytes() == b"recorded"


def test_missing_speech_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no espeak-ng here
    with pytest.raises(demo_media.SpeechMissing, match="AUDIO="):
        demo_media.demo_speech(tmp_path, (tmp_path,))


def test_local_file_becomes_a_file_address(tmp_path: Path) -> None:
    clip = tmp_path / "my clip #1.mp4"
    clip.write_bytes(b"x")
    media = demo.media_of(str(clip))
    assert media.path == clip
    assert media.url == f"file://{tmp_path}/my%20clip%20%231.mp4"


def test_address_is_handed_on_as_it_is() -> None:
    url = "https://cdn.example.com/a.mp4?sig=x%2Fy"
    assert demo.media_of(url) == demo.Media(url, None)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(application.DemoFailed, match=r"no file .*gone\.mp4"):
        demo.media_of(str(tmp_path / "gone.mp4"))


def shipped_config(folder: Path, port: int) -> Path:
    """Return the shipped configuration, but on `port` of this machine alone."""
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    document["http_options"] = {"host": "127.0.0.1", "port": port}
    config = folder / "serve_config.yaml"
    config.write_text(yaml.safe_dump(document))
    return config


def test_the_run_has_a_registry_of_its_own_and_nothing_else_differs(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    config = shipped_config(tmp_path, free_port("127.0.0.1"))
    copy, port = application.own_config(config, scratch)
    changed, document = yaml.safe_load(copy.read_text()), yaml.safe_load(config.read_text())
    assert port == document["http_options"]["port"]
    args = changed["applications"][0]["args"]
    assert AppArgs.model_validate(args).state_dir == scratch / "state"
    del args["state_dir"]
    assert args.pop("metrics_port") == 0  # any: `make serve` may run beside it
    assert changed == document


def test_taken_port_is_avoided(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = shipped_config(tmp_path, taken.getsockname()[1])
        (tmp_path / "scratch").mkdir()
        copy, port = application.own_config(config, tmp_path / "scratch")
        assert port != taken.getsockname()[1]
    assert yaml.safe_load(copy.read_text())["http_options"]["port"] == port


def test_child_works_for_nobody_else_and_asks_for_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in application.NOT_FOR_THE_DEMO:
        monkeypatch.setenv(name, "set")
    monkeypatch.setenv("LIPSYNC_ALLOWED_FOLDERS", "/theirs")
    env = application.environment(tmp_path, 8123, [Path("/a"), Path("/b")], "secret")
    assert not env.keys() & set(application.NOT_FOR_THE_DEMO)
    assert env["LIPSYNC_ALLOWED_FOLDERS"] == "/theirs:/a:/b"
    assert env["RAY_ADDRESS"] == "local"
    assert env["RAY_TMPDIR"] == str(tmp_path)
    assert env["INGRESS_API_KEY"] == "secret"


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's process, of another Ray session."""
    other = subprocess.Popen(["sleep", "60"], env={"RAY_TMPDIR": str(tmp_path / "other")})
    yield other
    other.kill()
    other.wait()


def test_stop_ends_the_whole_session_and_nothing_else(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    # A child that ignores SIGTERM's effect on its own child, which is in a session of its own.
    script = "setsid sleep 60 & trap 'exit 0' TERM; while :; do sleep 0.05; done"
    parent = subprocess.Popen(
        ["bash", "-c", script], env={"PATH": "/usr/bin:/bin", "RAY_TMPDIR": str(folder)}
    )

    def has_child() -> bool:
        # The parent's own short sleeps come and go meanwhile.
        return ["sleep", "60"] in map(command_of, application.session_processes(folder))

    until(has_child, "the child of the child has not started")
    application.stop(parent, folder)
    assert parent.returncode == 0
    assert application.session_processes(folder) == []
    assert not folder.exists()
    assert psutil.Process(bystander.pid).status() != psutil.STATUS_ZOMBIE
    assert bystander.poll() is None
