"""Children end when they should: with their deadline, their reader and their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from musetalk_pipeline.errors import DeadlineExceeded, StageFailed
from musetalk_pipeline.media.confinement import can_forbid_sockets, landlock_version
from musetalk_pipeline.media.sandbox import Child, ChildLimits, ffmpeg, ffprobe, local_input, run
from serve_app.graph.preprocessor import check_tools
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = ["sh", "-c", "sleep 600 & sleep 600"]
GRACE_S = 20.0


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def test_the_deadline_kills_the_whole_group() -> None:
    before = children()
    with pytest.raises(DeadlineExceeded, match="longer than 1 s"):
        run(ENDLESS, ChildLimits(1))
    until(lambda: not children() - before, "the children have not ended", GRACE_S)


def test_an_error_in_the_reader_kills_the_whole_group() -> None:
    before = children()
    with pytest.raises(RuntimeError, match="on purpose"), Child(ENDLESS, ChildLimits(60)):
        until(lambda: len(children() - before) == 3, "the children have not started", GRACE_S)
        raise RuntimeError("on purpose")
    until(lambda: not children() - before, "the children have not ended", GRACE_S)


def test_a_child_outlives_the_thread_that_asked_for_it() -> None:
    """The kernel's parent-death signal is about threads; a request's thread ends long before us."""
    made: list[Child] = []
    thread = threading.Thread(
        target=lambda: made.append(
            Child(["sh", "-c", "sleep 0.5; echo still here"], ChildLimits(60))
        )
    )
    thread.start()
    thread.join()
    with made[0] as child:
        assert child.read() == b"still here\n"
        assert child.wait() == 0


def test_children_die_with_their_parent() -> None:
    code = (
        "import os, sys\n"
        "from musetalk_pipeline.media.sandbox import Child, ChildLimits\n"
        "child = Child(['sh', '-c', 'echo $$; exec sleep 600'], ChildLimits(600))\n"
        "sys.stdout.write(child.read().decode()); sys.stdout.flush()\n"
        "os.read(0, 1)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdin is not None and parent.stdout is not None
    with parent, parent.stdin, parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)  # no chance to clean up
        parent.wait(GRACE_S)
        until(
            lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
            "the child has outlived its parent",
            GRACE_S,
        )


def test_a_forked_process_can_start_children_of_its_own() -> None:
    run(["true"], ChildLimits(10))  # this process has its spawner now
    code = (
        "import os\n"
        "from musetalk_pipeline.media.sandbox import ChildLimits, run\n"
        "run(['true'], ChildLimits(10))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if run(['echo', 'hi'], ChildLimits(10)).stdout == b'hi\\n' else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_a_child_sees_no_secret_and_no_input() -> None:
    os.environ["B2_APP_KEY"] = "secret-value"
    try:
        done = run(["sh", "-c", "env; cat; pwd; ulimit -c; ulimit -n"], ChildLimits(10))
    finally:
        del os.environ["B2_APP_KEY"]
    assert b"secret" not in done.stdout
    assert done.stdout.split()[-3:] == [b"/", b"0", b"64"]


ATTEMPTS = {
    "reads a foreign file": "cat /etc/passwd",
    "lists a folder": "ls {folder}",
    "reads another job's file": "cat {folder}/secret",
    "writes beside its output": "echo x > {folder}/new",
    "writes into a foreign file": "echo x > {folder}/secret",
    "removes its input": "rm {folder}/input",
    "writes into its input": "echo x >> {folder}/input",
    "connects": "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_child_touches_nothing_but_its_own(name: str, tmp_path: Path) -> None:
    """Mend 4.12: a media child had all rights of the worker. Where the kernel cannot take them,
    the preflight says so.
    """
    for file in ("secret", "input"):
        (tmp_path / file).write_text(file)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        attempt = ATTEMPTS[name].format(folder=tmp_path, port=listener.getsockname()[1])
        files = ("-i", f"file:{tmp_path}/input", f"file:{tmp_path}/output")
        done = run(["sh", "-c", attempt, *files], ChildLimits(20))
        listener.setblocking(False)
        said = check_tools()["media-confinement"]
        can_take = landlock_version() > 0
        if name == "connects":
            can_take = can_forbid_sockets() or landlock_version() > 3
        is_whole = landlock_version() > 0 and can_forbid_sockets()
        assert said == "ok" if is_whole else said.startswith("ok, but ")
        if not can_take:
            return
        assert done.returncode != 0 and "ermission denied" in done.message, done
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert (tmp_path / "secret").read_text() == "secret"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["input", "output", "secret"]


@pytest.mark.parametrize("kind", ["AF_UNIX", "AF_INET, socket.SOCK_DGRAM", "AF_INET6"])
def test_a_child_opens_no_socket_of_any_kind(kind: str) -> None:
    """Mend 4.12: Landlock knows TCP only; Ray's sockets have names in a folder, UDP leads out."""
    python = str(Path(sys.executable).resolve())
    done = run([python, "-c", f"import socket; socket.socket(socket.{kind})"], ChildLimits(20))
    if not can_forbid_sockets():
        assert check_tools()["media-confinement"].startswith("ok, but ")
        return
    assert done.returncode != 0 and "ermission denied" in done.message, done
    with socket.socket(socket.AF_UNIX):
        pass  # this process keeps its right


def test_a_child_reads_its_input_and_writes_its_output(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("hello")
    copy = 'cat "${1#file:}" > "${2#file:}"; cat "${2#file:}"'
    files = ("-i", f"file:{tmp_path}/input", f"file:{tmp_path}/output")
    done = run(["sh", "-c", copy, *files], ChildLimits(20, file_bytes=100))
    assert (done.returncode, done.stdout) == (0, b"hello"), done
    assert (tmp_path / "output").read_text() == "hello"


def test_what_lies_beside_the_folder_of_the_program_is_not_the_programs(tmp_path: Path) -> None:
    """A tool in somebody's own `bin` opened the whole home above it."""
    for name in ("bin/tool", "lib/library", "secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('#!/bin/sh\ncat "$@"\n')
    (tmp_path / "bin" / "tool").chmod(0o755)
    tool, limits = str(tmp_path / "bin" / "tool"), ChildLimits(20)
    assert run([tool, str(tmp_path / "lib" / "library")], limits).returncode == 0
    if landlock_version():
        done = run([tool, str(tmp_path / "secret")], limits)
        assert done.returncode != 0 and "ermission denied" in done.message, done


def test_the_preflight_starts_the_tools_as_jobs_do() -> None:
    found = check_tools()
    assert (found["ffmpeg"], found["ffprobe"]) == ("ok", "ok")


def test_threads_of_this_process_keep_their_rights(tmp_path: Path) -> None:
    """Landlock acts on one thread: that which starts a child, and ends with it."""
    run(["true"], ChildLimits(10))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: (tmp_path / str(i)).write_text("x"), range(8)))
    assert not [t for t in threading.enumerate() if t.name == "media-starter" and t.is_alive()]


def test_limits_hold_for_memory_and_files(tmp_path: Path) -> None:
    hungry = [sys.executable, "-c", "x = bytearray(3 << 30)"]
    assert run(hungry, ChildLimits(30, memory_bytes=1 << 30)).returncode != 0
    target = tmp_path / "big"
    write = ["sh", "-c", 'head -c 100000 /dev/zero > "${0#file:}"', f"file:{target}"]
    run(write, ChildLimits(10, file_bytes=10_000))
    assert 0 < target.stat().st_size <= 10_000


def test_output_and_complaints_are_bounded() -> None:
    with pytest.raises(StageFailed, match="printed more"):
        run(["yes"], ChildLimits(30), max_output_bytes=10_000)
    done = run(["sh", "-c", "yes complaint | head -c 1000000 >&2"], ChildLimits(30))
    assert 0 < len(done.message) <= 300


def test_messages_hold_no_paths(tmp_path: Path) -> None:
    missing = tmp_path / "private folder" / "clip.mp4"
    done = run([*ffprobe(), *local_input(missing, "mov,mp4,m4a,3gp,3g2,mj2")], ChildLimits(30))
    assert done.returncode != 0 and done.message
    assert str(tmp_path) not in done.message


def test_only_local_files_of_the_named_kind_are_opened(tmp_path: Path) -> None:
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    forced = ffmpeg(*local_input(playlist, "hls"), "-f", "null", "-")
    assert run(forced, ChildLimits(30)).returncode != 0
    listed = ffmpeg("-format_whitelist", "mpegts", "-i", f"file:{playlist}", "-f", "null", "-")
    assert run(listed, ChildLimits(30)).returncode != 0


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(StageFailed, match="no-such-tool is not installed"):
        run(["no-such-tool"], ChildLimits(5))


def test_a_closed_pipe_does_not_spin() -> None:
    """A child that closes its output and lives on costs no CPU of ours while it is waited for."""
    before = time.process_time()
    done = run(["sh", "-c", "exec >&-; sleep 1.5; echo late >&2"], ChildLimits(30))
    assert done.message == "late"
    assert time.process_time() - before < 0.5


@pytest.mark.parametrize("seconds", [1, 100])
def test_a_full_disk_is_no_fault_of_the_media(seconds: int) -> None:
    """Mend 1.16: a child that cannot write was said to have damaged input (exit code 2), or, where
    only the last bytes were missing, to have done well.
    """
    tone = ("-f", "lavfi", "-i", f"sine=duration={seconds}")
    with pytest.raises(StageFailed, match="disk of this worker is full"):
        run(ffmpeg(*tone, "-f", "s16le", "file:/dev/full"), ChildLimits(30.0))
