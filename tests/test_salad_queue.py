"""`salad-queue`: which of the two processes is stopped when, and with which status all ends.

Small programs stand in for the application and for Salad's queue worker. `make image-check` does
the same with the application, and with a job.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ENTRY = Path(__file__).resolve().parents[1] / "cluster" / "image" / "salad-queue.sh"
END_S = 30
# Each writes a line when it starts and when it gets a signal, and ends with `status` when told to.
PROGRAM = """#!/bin/bash
exec 8>"$EVENTS"
trap 'echo "{name} is stopped" >&8; exit 0' TERM
echo "{name} $*" >&8
until [[ -e $EVENTS.{name} ]]; do sleep 0.02; done
exit {status}
"""


@contextmanager
def container(folder: Path) -> Iterator[tuple[Events, Started]]:
    """Start the entry, and yield the lines of both programs."""
    events = folder / "events"
    for name, file, status in (("app", "lipsync", 3), ("queue", "worker", 7)):
        program = folder / file
        program.write_text(PROGRAM.format(name=name, status=status))
        program.chmod(0o755)
    os.mkfifo(events)
    started = start(folder, events=events, worker=folder / "worker")
    try:
        with events.open() as lines:
            yield lines, started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


Events = Iterator[str]
Started = subprocess.Popen[str]


def start(folder: Path, *, events: Path, worker: Path) -> Started:
    return subprocess.Popen(
        [ENTRY, "mine.yaml"],
        env={
            "PATH": f"{folder}:/usr/bin:/bin",
            "EVENTS": str(events),
            "SALAD_QUEUE_WORKER": str(worker),
            "SALAD_QUEUE_REPORT_S": "0",
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def both(events: Events) -> set[str]:
    return {next(events).strip(), next(events).strip()}


def test_the_end_of_the_queue_worker_stops_the_application_and_gives_the_status(
    tmp_path: Path,
) -> None:
    with container(tmp_path) as (events, started):
        assert both(events) == {"app serve mine.yaml", "queue"}
        (tmp_path / "events.queue").touch()
        assert next(events) == "app is stopped\n"
        assert started.wait(END_S) == 7


def test_the_end_of_the_application_stops_the_queue_worker_and_gives_the_status(
    tmp_path: Path,
) -> None:
    with container(tmp_path) as (events, started):
        assert both(events) == {"app serve mine.yaml", "queue"}
        (tmp_path / "events.app").touch()
        assert next(events) == "queue is stopped\n"
        assert started.wait(END_S) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_application_finish_before_the_queue_worker_is_stopped(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The queue worker would abandon the request that it waits for."""
    with container(tmp_path) as (events, started):
        assert both(events) == {"app serve mine.yaml", "queue"}
        started.send_signal(number)
        assert [next(events), next(events)] == ["app is stopped\n", "queue is stopped\n"]
        assert started.wait(END_S) == 0


def test_an_image_without_the_queue_worker_says_how_to_build_one_with_it(tmp_path: Path) -> None:
    started = start(tmp_path, events=tmp_path / "events", worker=tmp_path / "missing")
    _, said = started.communicate(timeout=END_S)
    assert started.returncode == 2
    assert "SALAD_QUEUE_SHA256" in said
