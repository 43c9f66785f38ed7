"""The command line itself: help, mistakes, exit codes, completion, and how light it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
from command_rig import ROOT, command, environment
from typer.main import get_command

from lipsync import __version__
from lipsync.app import app, run
from lipsync.exit_codes import MEANINGS
from musetalk_pipeline.loading import ToolOptions
from musetalk_pipeline.option_spec import options_of
from musetalk_pipeline.options import job_options
from serve_app.config.settings import API_VERSION
from serve_app.one_shot.stopping import Stopping
from serve_app.run_job import EXIT_CODES

COMMANDS = (
    ("make",), ("preview",), ("serve",), ("drain",), ("run-job",), ("doctor",), ("bench",),
    ("submit",), ("watch",), ("ls",), ("download",), ("cancel",), ("retry",), ("estimate",),
    ("upload",),
    ("weights", "fetch"), ("weights", "verify"), ("config", "check"),
)  # fmt: skip


def test_the_version_is_everywhere_the_same(lipsync):
    assert lipsync("--version").stdout == f"lipsync {__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__ == API_VERSION
    assert project["scripts"]["lipsync"] == "lipsync.__main__:main"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_text_is_a_sentence(words):
    found = get_command(app)
    for word in words:
        found = found.commands[word]
    for text in (found.help, *(one.help for one in found.params)):
        first = " ".join(text.split())
        assert re.fullmatch(r"[A-Z`a-z0-9].*[.]", first), first
        assert len(first.split()) > 3, first


def test_every_option_of_a_job_is_a_flag_with_its_help_and_its_bounds(capsys):
    shown = {one.opts[0]: one for one in get_command(app).commands["make"].params}
    for option in [*job_options(), *options_of(ToolOptions)]:
        assert shown[option.flag].help == option.help_text
        for bound in (option.spec.least, option.spec.most):
            if bound is None:
                continue
            beyond = bound + (1 if bound == option.spec.most else -1)
            words = [f"{option.flag}={beyond}", "--json"]
            assert run(["make", "v", "a", *words], Stopping()) == 2
            assert option.flag in json.loads(capsys.readouterr().out)["message"]
            accepted = [f"{option.flag}={bound}", "--json"]  # the video is what is wrong then
            assert run(["make", "v", "a", *accepted], Stopping()) == 2
            assert json.loads(capsys.readouterr().out)["code"] == "invalid_video"


def test_a_misspelt_command_or_option_is_answered_with_what_may_be_meant(lipsync):
    done = lipsync("make", "v", "a", "--resolutoin", "720p")
    assert (done.returncode, done.stdout) == (2, "")
    assert "There is no option --resolutoin. Did you mean --resolution?" in done.stderr
    assert "`lipsync make --help`" in done.stderr
    done = lipsync("doctr", "--json")
    assert done.returncode == 2
    facts = json.loads(done.stdout)
    assert (facts["code"], facts["exit_code"]) == ("usage", 2)
    assert "Did you mean 'doctor'?" in facts["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--crf", "41"), "--crf"),
        (("--crf", "many"), "--crf"),
        (("--fit", "squeeze"), "--fit"),
        (("--segments", "[1]"), "--segments"),
        (("--deadline-s", "0"), "--deadline-s"),
        (("extra",), "extra"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(lipsync, words, said):
    done = lipsync("make", "v", "a", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and said in done.stderr.splitlines()[0]


def test_without_arguments_there_is_help(lipsync):
    for words in ((), ("weights",), ("config",)):
        done = lipsync(*words)
        assert done.returncode == 2
        assert "Usage: lipsync" in done.stdout + done.stderr


def test_exit_codes_are_those_of_a_container_s_job(lipsync):
    """docs/protocol.md §4; one table for every command."""
    assert list(MEANINGS) == list(EXIT_CODES) == [0, 1, 2, 130, 143]
    text = lipsync("--help").stdout
    for code in MEANINGS:
        assert re.search(rf"^\W+{int(code)} \w", text, re.MULTILINE), code


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "complete -o default -F _lipsync_completion lipsync"),
        ("zsh", "#compdef lipsync"),
        ("fish", "complete --command lipsync"),
    ],
)
def test_a_completion_script_is_printed(lipsync, shell, line):
    # The variable stands for the shell that would call: tests are not called by one.
    done = lipsync("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert line in done.stdout


def test_a_shell_gets_completions(lipsync):
    words = {"COMP_WORDS": "lipsync make --pres", "COMP_CWORD": "2"}
    done = lipsync(_LIPSYNC_COMPLETE="complete_bash", **words)
    assert sorted(done.stdout.split()) == ["--presence-interval", "--preset"]


def test_the_page_about_the_command_line_is_what_the_command_line_says():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "command_line_tables.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "command-line.md").read_text()
    known = {words[0] for words in COMMANDS}
    examples = re.findall(r"^    lipsync (\S+) (.*)$", page, re.MULTILINE)
    assert len(examples) > 4
    for name, rest in examples:
        assert name in known
        flags = {one for command in ("make", name) for one in _flags_of(command)}
        assert set(re.findall(r"(?<= )-[a-z-]+", f" {rest.partition('#')[0]}")) <= flags


def _flags_of(name: str) -> list[str]:
    return [flag for one in get_command(app).commands[name].params for flag in one.opts]


def test_help_is_light():
    """It takes a quarter of a second, because neither networks nor Ray are loaded for it."""
    code = "import lipsync.app, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [*command()[:1], "-c", code], env=environment(), check=True, capture_output=True, text=True
    ).stdout.split()
    heavy = {"torch", "ray", "fastapi", "pydantic", "av", "cv2", "scipy", "transformers", "httpx"}
    assert not heavy & set(loaded)
