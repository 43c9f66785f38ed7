"""`lipsync make` and `lipsync preview`: what comes out, where, and what is refused."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path

import av
import cv2
import psutil
import pytest
from command_rig import command, environment

FAST = ("--engine", "warp", "--preset", "ultrafast")


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture
def video(clip, tmp_path) -> Path:
    return Path(shutil.copy(clip(frames=20), tmp_path / "talk.mp4"))


@pytest.fixture
def audio(speech, tmp_path) -> Path:
    return Path(shutil.copy(speech(0.8), tmp_path / "words.wav"))


def test_the_result_lies_beside_the_video(lipsync, video, audio, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = lipsync("make", video, audio, *FAST, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    result = tmp_path / "talk-lipsync.mp4"
    assert frames_in(result) == 20
    assert f"result   {result}\n" in done.stdout
    assert "20 (20 with a face), 320x240" in done.stdout
    assert "The engine is warp, because it was requested." in done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # no colours where there is no terminal
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_times_and_segments_are_options_like_any_other(lipsync, video, audio, tmp_path):
    span = {"start_s": 0.2, "end_s": 0.6, "audio": {"url": str(audio), "start_s": 0.1}}
    times = ("--segments", json.dumps([span]), "--video-start-s", "0.08")
    done = lipsync("make", video, audio, *FAST, *times, "--sync-mode", "loop")
    assert done.returncode == 0, done.stderr
    assert "18 (10 with a face)" in done.stdout
    assert "sync_mode has no effect together with segments" in done.stdout
    previewed = lipsync("preview", video, audio, "--engine", "warp", *times)
    assert previewed.returncode == 0, previewed.stderr
    assert "source frame  5\n" in previewed.stdout
    span["audio"]["url"] = "missing.wav"
    refused = lipsync("make", video, audio, *FAST, "--force", "--segments", json.dumps([span]))
    assert refused.returncode == 2
    assert "There is no audio file at missing.wav" in refused.stderr


def test_an_existing_file_is_overwritten_with_force_only(lipsync, video, audio, tmp_path):
    out = tmp_path / "talk-lipsync.mp4"
    out.write_text("mine")
    refused = lipsync("make", video, audio, *FAST)
    assert refused.returncode == 2
    assert f"error: {out} exists." in refused.stderr and "--force" in refused.stderr
    assert out.read_text() == "mine"
    forced = lipsync("make", video, audio, *FAST, "--force")
    assert forced.returncode == 0, forced.stderr
    assert frames_in(out) == 20


def test_a_source_is_never_overwritten(lipsync, video, audio):
    before = video.read_bytes()
    for target in (video, video.parent / "." / video.name):
        done = lipsync("make", video, audio, "-o", target, "--force")
        assert done.returncode == 2
        assert "would overwrite" in done.stderr
    assert video.read_bytes() == before


def test_json_is_one_object_on_standard_output(lipsync, video, audio, tmp_path):
    sheet = tmp_path / "sheet.png"
    done = lipsync("make", video, audio, *FAST, "--json", "--contact-sheet", sheet)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["status"] == "success"
    assert facts["output"] == str(tmp_path / "talk-lipsync.mp4")
    assert (facts["frames"], facts["engine"], facts["contact_sheet"]) == (20, "warp", str(sheet))
    assert set(facts["stage_seconds"]) == {
        "validation", "prepare", "listen", "inference", "compose", "stitch"
    }  # fmt: skip
    assert cv2.imread(str(sheet)) is not None


def test_what_was_decided_for_the_caller_is_said(lipsync, video, audio):
    done = lipsync("make", video, audio, *FAST, "--resolution", "161x121")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("warning ")]
    assert "160x120" in line


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("absent.mp4", "words.wav"), "invalid_video", "There is no video file at absent.mp4."),
        (("talk.mp4", "absent.wav"), "invalid_audio", "There is no audio file at absent.wav."),
        (("talk.mp4", "."), "invalid_audio", "is a folder"),
        (("ftp://h/v.mp4", "words.wav"), "invalid_video", "ftp:// addresses cannot be fetched"),
        (("words.wav", "words.wav"), "invalid_video", ""),
        (("talk.mp4", "words.wav", "-o", "no/such/o.mp4"), "invalid_options", "does not exist"),
        (("talk.mp4", "words.wav", "-o", "."), "invalid_options", "is a folder"),
        (("talk.mp4", "words.wav", "--resolution", "tall"), "invalid_options", "tall"),
    ],
)
def test_wrong_input_is_said_with_exit_code_2(
    lipsync, video, audio, tmp_path, arguments, code, said
):
    before = sorted(tmp_path.iterdir())
    done = lipsync("make", *arguments, "--engine", "warp", "--json")
    assert done.returncode == 2, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["status"], facts["code"], facts["exit_code"]) == ("error", code, 2)
    assert said in facts["message"]
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_fault_of_this_machine_has_exit_code_1(lipsync, video, audio, tmp_path):
    done = lipsync("make", video, audio, "--engine", "musetalk", "--models", tmp_path / "none")
    assert done.returncode == 1
    assert "[model_load_failed]" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "talk-lipsync.mp4").exists()


def test_an_address_is_fetched_where_private_hosts_are_allowed(
    lipsync, video, audio, served, tmp_path
):
    folder, url = served
    shutil.copy(video, folder / "my clip.mp4")
    address = f"{url}/my%20clip.mp4?token=s3cret"
    refused = lipsync("make", address, audio, *FAST)
    assert refused.returncode == 2
    assert "[source_refused]" in refused.stderr
    done = lipsync("make", address, audio, *FAST, ALLOWED_SOURCE_HOSTS="127.0.0.1")
    assert done.returncode == 0, done.stderr
    assert frames_in(tmp_path / "my_clip-lipsync.mp4") == 20
    assert "s3cret" not in refused.stderr + done.stderr + done.stdout


def test_an_address_that_has_nothing_is_exit_code_2_and_one_that_is_closed_1(
    lipsync, audio, served
):
    _, url = served
    gone = lipsync("make", f"{url}/v.mp4", audio, ALLOWED_SOURCE_HOSTS="127.0.0.1")
    assert (gone.returncode, "404" in gone.stderr) == (2, True)
    closed = lipsync("make", "http://127.0.0.1:9/v.mp4", audio, ALLOWED_SOURCE_HOSTS="127.0.0.1")
    assert closed.returncode == 1, closed.stderr


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(clip, speech, tmp_path, signum, code):
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    arguments = ("make", clip(frames=100), speech(60.0), "-o", out / "o.mp4", *FAST)
    process = subprocess.Popen(
        command(*arguments),
        env=environment(TMPDIR=str(scratch)),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "compose" not in said:  # in the middle of it
        line = process.stderr.readline()
        assert line, said
        said += line
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    stdout, rest = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, "")
    assert f"Stopped by {signal.Signals(signum).name}; nothing is left behind." in rest
    assert "Traceback" not in said + rest
    assert list(scratch.iterdir()) == list(out.iterdir()) == []
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]


def test_a_terminal_shows_a_bar_with_the_time_that_is_left(video, audio):
    """The other tests see lines instead."""
    main, terminal = pty.openpty()
    done = subprocess.Popen(
        command("make", video, audio, *FAST),
        env=environment(COLUMNS="100", TERM="xterm-256color"),
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    said = b""
    try:
        while part := os.read(main, 4096):
            said += part
    except OSError:  # the other side is closed
        pass
    finally:
        os.close(main)
    assert done.wait(60) == 0
    text = said.decode()
    assert "━" in text and "frames" in text and "left" in text


def test_a_preview_is_one_picture(lipsync, video, audio, tmp_path):
    done = lipsync("preview", video, audio, "--engine", "warp")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "talk-preview.png")).shape == (240, 320, 3)
    again = lipsync("preview", video, audio, "--json")
    assert again.returncode == 2
    assert json.loads(again.stdout)["code"] == "invalid_options"


@pytest.mark.slow
def test_the_benchmark_does_one_fixed_job_and_prices_it(lipsync):
    done = lipsync("bench", "--seconds", "1", "--dollars-per-hour", "0.36", *FAST, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["frames"] == 25
    assert set(facts["stage_seconds"]) >= {"prepare", "inference", "compose"}
    # 0.36 dollars an hour are 0.0001 a second, and 25 frames are a sixtieth of a minute.
    assert facts["dollars_per_finished_minute"] == pytest.approx(facts["seconds"] * 0.006, rel=0.01)
