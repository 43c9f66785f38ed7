"""Every example of README.md and docs/api.md runs as it is printed, and its answer looks like that.

Only the port differs, and the files behind `.cache/demo`, which are shorter than the demo's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config.ports import free_port
from tests.serve.running import WEBHOOK_SECRET, RunningApp

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_S = 120
RUNNERS = {"sh": ["bash", "-e"], "python": [sys.executable], "js": ["node"]}
SUFFIXES = {"sh": ".sh", "python": ".py", "js": ".mjs"}
# Parts of an answer whose keys depend on the job or on the machine.
OPEN_PARTS = {
    *("stage_times", "stage_seconds", "stage_s", "stage_frames"),
    *("frames_by_gpu_class", "details"),
}
# Words of an answer that a reader may rely on.
STATES = {"status", "code", "error_type", "stage", "input", "retryable", "detail", "phase"}
_HEADING = re.compile(r"^#+ (.+)$")
_START = re.compile(r"^(?!#).*\bmake (run|serve)\b", re.MULTILINE)
_NAME = re.compile(r"// (\w+\.mjs)\n")  # of a module that a later example imports
_FENCE = re.compile(r"^```(\w*)$")


@dataclass(frozen=True)
class Example:
    """A block of code in a document, and the answer that is printed below it, if there is one."""

    page: str
    line: int
    section: str
    language: str
    code: str
    answer: str | None = None

    @property
    def is_start(self) -> bool:
        """Whether it starts the application, which `make run` and the launcher have tests for."""
        return _START.search(self.code) is not None


def examples_of(page: str) -> list[Example]:
    """Return the examples of a document in their order."""
    found: list[Example] = []
    section, block, language = "", [], None
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if language is None:
            if heading := _HEADING.match(line):
                section = heading[1]
            if fence:
                language, block = fence[1], []
        elif fence:
            text = "\n".join(block) + "\n"
            if language in RUNNERS:
                found.append(Example(page, number - len(block), section, language, text))
            elif language in ("json", "text") and found:
                found[-1] = replace(found[-1], answer=text)
            language = None
        else:
            block.append(line)
    return found


PAGES = ("README.md", "docs/api.md")
EXAMPLES = [example for page in PAGES for example in examples_of(page)]
APART = ("Cancelling", "Webhooks")  # they have tests of their own


@dataclass(frozen=True)
class Desk:
    """A folder where a reader tries the examples: `.cache/demo` is there, the application runs."""

    folder: Path
    app: RunningApp
    webhook_port: int

    def run(self, example: Example) -> str:
        """Run an example to its end; what it printed."""
        done = subprocess.run(
            self.command(example),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=EXAMPLE_S,
            env=self.environment,
        )
        said = f"{example.page}:{example.line}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        return done.stdout

    def command(self, example: Example) -> list[str]:
        """Write an example to a file, with the addresses of this test; the command to run it."""
        named = _NAME.match(example.code)
        file = self.folder / (named[1] if named else f"example{SUFFIXES[example.language]}")
        code = example.code.replace("http://localhost:8000", f"http://127.0.0.1:{self.app.port}")
        code = code.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
        file.write_text(code.replace("9000", str(self.webhook_port)))
        return [*RUNNERS[example.language], file.name]

    @property
    def environment(self) -> dict[str, str]:
        """What the reader's shell holds."""
        own = {"WEBHOOK_SECRET": WEBHOOK_SECRET, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        return os.environ | own


DeskMaker = Callable[[float], Desk]


@pytest.fixture
def desk(
    app: RunningApp, tmp_path: Path, clip: Callable[..., Path], speech: Callable[..., Path]
) -> DeskMaker:
    """Return a function that makes the desk, with speech of so many seconds."""

    def make(seconds: float) -> Desk:
        demo = tmp_path / ".cache" / "demo"
        demo.mkdir(parents=True)
        (tmp_path / "out").mkdir()
        shutil.copy(clip(), demo / "face.mp4")
        shutil.copy(speech(seconds), demo / "speech.wav")
        return Desk(tmp_path, app, free_port("127.0.0.1"))

    return make


def needs(language: str) -> None:
    if shutil.which(RUNNERS[language][0]) is None:
        pytest.skip(f"needs {RUNNERS[language][0]}")


@pytest.mark.parametrize(
    ("page", "language"), sorted({(example.page, example.language) for example in EXAMPLES})
)
def test_the_examples_run_and_answer_as_printed(page: str, language: str, desk: DeskMaker) -> None:
    needs(language)
    here = desk(0.6)
    for example in EXAMPLES:
        is_asked_for = (example.page, example.language) == (page, language)
        if is_asked_for and not example.is_start and example.section not in APART:
            check_answer(example, here.run(example))


@pytest.mark.parametrize("language", RUNNERS)
def test_the_examples_of_cancelling_cancel(language: str, desk: DeskMaker) -> None:
    needs(language)
    here = desk(60.0)  # long enough to be running when it is cancelled
    [example] = in_section("Cancelling", language)
    said = here.run(example)
    assert "Cancellation requested" in said
    check_answer(example, said)
    newest = here.app.client.get("/v1/avatar/jobs", params={"limit": 1}).json()["jobs"][0]
    here.app.wait_for(newest["id"], "cancelled")


@pytest.mark.parametrize("language", ["python", "js"])
def test_the_receivers_accept_a_webhook_and_refuse_a_forged_one(
    language: str, desk: DeskMaker
) -> None:
    needs(language)
    here = desk(0.6)
    [receiver] = in_section("Webhooks", language)
    [request] = in_section("Webhooks", "sh")
    with running(here, receiver) as process:
        job = json.loads(here.run(request))
        assert process.stdout is not None
        event, job_id, url = process.stdout.readline().split()
        assert (event, job_id) == ("avatar.job.succeeded", job["id"])
        assert httpx.get(url, trust_env=False).status_code == 200
        forged = {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
        for headers in ({}, forged):
            answer = httpx.post(
                f"http://127.0.0.1:{here.webhook_port}/hook",
                json={"type": "avatar.job.succeeded"},
                headers=headers,
                trust_env=False,
            )
            assert answer.status_code == 400


@contextmanager
def running(desk: Desk, example: Example) -> Iterator[subprocess.Popen[str]]:
    """Run an example that does not end by itself."""
    process = subprocess.Popen(
        desk.command(example),
        cwd=desk.folder,
        stdout=subprocess.PIPE,
        text=True,
        env=desk.environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def in_section(section: str, language: str) -> list[Example]:
    """Return the examples of a section of docs/api.md that do not start the application."""
    return [
        example
        for example in EXAMPLES
        if (example.page, example.section, example.language) == ("docs/api.md", section, language)
        and not example.is_start
    ]


def check_answer(example: Example, said: str) -> None:
    """Compare what an example printed with the answer below it: its keys, and its states."""
    if example.answer is None:
        return
    where = f"{example.page}:{example.line}"
    if example.answer.startswith("{"):
        assert_alike(json.loads(example.answer), json.loads(said), where)
    else:
        assert event_names(example.answer) == event_names(said), where


def event_names(stream: str) -> set[str]:
    """Return the names of the server-sent events in `stream`."""
    return set(re.findall(r"^event: (\w+)$", stream, re.MULTILINE))


def assert_alike(printed: Any, real: Any, where: str) -> None:
    if isinstance(printed, dict) and isinstance(real, dict):
        assert printed.keys() == real.keys(), where
        for name, value in printed.items():
            if name in STATES:
                assert value == real[name], f"{where} {name}"
            if name not in OPEN_PARTS:
                assert_alike(value, real[name], f"{where} {name}")
        return
    assert isinstance(real, type(printed)) or isinstance(printed, float), where


def test_an_answer_that_is_not_the_printed_one_is_found() -> None:
    printed = {"status": "success", "metrics": {"total_time": 1.5}}
    assert_alike(printed, {"status": "success", "metrics": {"total_time": 2}}, "")
    for real in (
        {"status": "failed", "metrics": {"total_time": 2}},
        {"status": "success", "metrics": {}},
        {"status": "success", "metrics": None},
        {"status": "success", "metrics": {"total_time": 2}, "more": 1},
    ):
        with pytest.raises(AssertionError):
            assert_alike(printed, real, "")
