"""A worker whose head is gone ends itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ray_up.head_watch import Watched, is_reachable, watch
from tests.rental.fakes.runpod import FakeRunPod
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
OWN_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
END_S = 40.0


@pytest.fixture
def head() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def watched(head: socket.socket, patience_s: float = 60.0) -> Watched:
    return Watched("127.0.0.1", head.getsockname()[1], patience_s)


class Story:
    """A head that answers at some checks; the time moves on in the pauses."""

    def __init__(self, *answers: bool, patience_s: float = 30.0) -> None:
        self.answers, self.now = list(answers), 0.0
        self.watched = Watched("10.0.0.1", 6379, patience_s)

    def run(self) -> float:
        """Watch, and return when the head was given up."""
        watch(lambda: self.watched, self._is_there, lambda: self.now, self._pause)
        return self.now

    def _is_there(self, _: Watched) -> bool:
        return self.answers.pop(0) if self.answers else False

    def _pause(self, seconds: float) -> None:
        self.now += seconds


def test_a_head_that_stays_away_is_given_up_after_the_patience() -> None:
    assert Story().run() == pytest.approx(30.0, abs=8.0)


def test_each_answer_begins_the_patience_again() -> None:
    story = Story(*[False] * 3, True)
    seen_at = 3 * 7.5
    assert story.run() >= seen_at + 30.0


def test_another_head_that_takes_the_machine_over_gets_the_whole_patience() -> None:
    story = Story()
    pause = story._pause

    def take_over(seconds: float) -> None:
        pause(seconds)
        if story.now == 22.5:
            story.watched = Watched("10.0.0.2", 6379, 30.0)

    assert watch(lambda: story.watched, story._is_there, lambda: story.now, take_over) == Watched(
        "10.0.0.2", 6379, 30.0
    )
    assert story.now >= 22.5 + 30.0


def test_a_port_that_nobody_listens_at_is_not_reachable(head: socket.socket) -> None:
    there = watched(head)
    assert is_reachable(there)
    head.close()
    assert not is_reachable(there)


def test_what_is_watched_survives_in_its_file(head: socket.socket, tmp_path: Path) -> None:
    file = tmp_path / "state" / "watch.json"
    watched(head).write(file)
    assert Watched.read(file) == watched(head)
    assert [path.name for path in file.parent.iterdir()] == ["watch.json"]


class Worker:
    """A machine of its own processes, whose first one is a shell that starts the watch."""

    def __init__(
        self, home: Path, head: socket.socket, vendor_url: str, pod: str, key: str
    ) -> None:
        port = head.getsockname()[1]
        watch = (
            f"{sys.executable} -m cluster.ray_up.head_watch --vendor runpod "
            f"--head 127.0.0.1:{port} --minutes 0.02"
        )
        # The second start stands for a head that takes the machine over: one watch goes on.
        script = f"trap 'exit 7' TERM; {watch} && {watch} && touch $HOME/started; sleep 600 & wait"
        self.home = home
        self.process = subprocess.Popen(
            [*OWN_PROCESSES, "bash", "-c", script],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT),
                "RUNPOD_POD_ID": pod, "RUNPOD_API_KEY": key, "RUNPOD_API_URL": vendor_url,
            },
            start_new_session=True,
        )  # fmt: skip

    @property
    def log(self) -> str:
        """What the watch has printed."""
        file = self.home / ".lipsync" / "head_watch.log"
        return file.read_text() if file.exists() else ""

    def end(self) -> None:
        """End the machine."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def runpod() -> Iterator[FakeRunPod]:
    fake = FakeRunPod()
    with fake.running():
        yield fake


@pytest.mark.parametrize("is_accepted", [True, False], ids=["vendor accepts", "vendor refuses"])
def test_a_machine_gives_itself_back_or_ends_its_first_process(
    runpod: FakeRunPod, head: socket.socket, tmp_path: Path, is_accepted: bool
) -> None:
    if subprocess.run([*OWN_PROCESSES, "true"], capture_output=True).returncode:
        pytest.skip("process namespaces are not permitted")
    pod = runpod.foreign()
    worker = Worker(tmp_path, head, runpod.url, pod, runpod.key if is_accepted else "wrong")
    try:
        until(lambda: (tmp_path / "started").exists(), lambda: worker.log, END_S)
        assert pod in runpod.machines and worker.process.poll() is None
        head.close()
        if is_accepted:
            until(lambda: pod not in runpod.machines, lambda: worker.log, END_S)
            assert worker.process.poll() is None
        else:
            until(lambda: worker.process.poll() == 7, lambda: worker.log, END_S)
            assert pod in runpod.machines
        assert worker.log.count("this machine ends itself") == 1
    finally:
        worker.end()
