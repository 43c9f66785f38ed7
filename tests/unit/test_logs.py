"""Log lines: text or JSON, nothing secret, no traces for what callers did wrong."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from musetalk_pipeline.errors import InvalidVideo, JobCancelled, StageFailed
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.contract.requests import JobRequest
from serve_app.jobs.job import Job, Origin
from serve_app.jobs.job_log import log_end
from serve_app.launcher.console import Console
from serve_app.telemetry.logs import PACKAGES, SERVE_LOGGER, set_up_logging

SECRET = "a-secret-of-some-length"


@pytest.fixture(autouse=True)
def loggers_are_put_back() -> Iterator[None]:
    """Undo what a test sets up."""
    loggers = [logging.getLogger(name) for name in (*PACKAGES, SERVE_LOGGER)]
    before = [(x, x.handlers[:], x.level, x.propagate, x.filters[:]) for x in loggers]
    yield
    for logger, handlers, level, propagate, filters in before:
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.propagate = propagate
        logger.setLevel(level)


def fail(logger: logging.Logger, error: Exception) -> None:
    """Log as Serve's replica does when a call raises."""
    try:
        raise error
    except Exception:
        logger.exception("Request failed.")


def test_json_lines_where_the_configuration_says_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Mend 2.7."""
    set_up_logging((SECRET,), is_json=True)
    logger = logging.getLogger("serve_app.thing")
    logger.info("token %s\nin two lines", SECRET, extra={"frames": 3, "at": f"x {SECRET}"})
    fail(logger, ValueError(f"bad {SECRET}"))
    said = capsys.readouterr().err
    first, second = (json.loads(line) for line in said.splitlines())
    assert first["message"] == "token [hidden]\nin two lines"
    assert (first["level"], first["logger"]) == ("INFO", "serve_app.thing")
    assert (first["frames"], first["at"]) == (3, "x [hidden]")
    assert [*first] == ["time", "level", "logger", "message", "process", "frames", "at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["time"])
    assert "Traceback" in second["trace"] and "ValueError: bad [hidden]" in second["trace"]
    assert SECRET not in said


def test_text_lines_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging((SECRET,))
    logging.getLogger("serve_app.thing").info("said", extra={"frames": 3, "at": f"x {SECRET}"})
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO serve_app.thing: said frames=3 at='x [hidden]'")


def test_serve_writes_no_trace_for_a_callers_mistake_and_keeps_that_of_a_crash(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Mend 2.7: 500 of 964 lines were traces for twenty mistakes."""
    serve = logging.getLogger(SERVE_LOGGER)
    serve.handlers[:] = [logging.StreamHandler(sys.stderr)]
    serve.propagate = False
    set_up_logging()
    set_up_logging()  # a replica that is set up twice
    fail(serve, InvalidVideo("The video is none."))
    fail(serve, JobCancelled("Nobody waits."))
    assert capsys.readouterr().err == ""
    fail(serve, StageFailed("The stage crashed."))
    fail(serve, ZeroDivisionError("a crash"))
    assert capsys.readouterr().err.count("Traceback (most recent call last)") == 2


# --- a job's end ----------------------------------------------------------------------------------


def end(outcome: Outcome, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    request = JobRequest(musetalk_job_id="a1", video_url="http://x/v", audio_url="http://x/a")
    progress = Progress(Phase.COMPLETED, 1.0, 178, 178, {})
    job = Job(
        id="a1",
        request=request,
        origin=Origin.SYNC,
        status="running",
        created=0.0,
        updated=0.0,
        run=1,
        number=1,
        attempt=1,
        attempt_id="x",
        lost_attempt_id=None,
        progress=progress,
        outcome=None,
        metadata=None,
        warnings=(),
        queue_job_id=None,
        queue_position=None,
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, "serve_app.jobs.job_log"):
        logging.getLogger("serve_app").propagate = True
        log_end(job, outcome, progress)
    [record] = caplog.records
    return record


def test_the_end_of_a_job_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Mend 2.7."""
    success = Success("http://x/o.mp4", {"total_time": 9.94, "engine": "warp"})
    said = end(success, caplog)
    assert said.getMessage() == "job a1 succeeded: 178 frames in 9.9 s, engine warp"
    theirs = Failure("media_error", "It is none.", "invalid_video", "validation", False, 422)
    said = end(theirs, caplog)
    assert said.getMessage() == "job a1 failed (invalid_video): It is none."
    assert said.levelno == logging.INFO
    ours = Failure("processing_error", "It crashed.", "stage_failed", "inference", True, 500)
    assert end(ours, caplog).levelno == logging.ERROR
    gone = Failure("processing_error", "x", "cancelled", "unknown", False, 500, cancelled=True)
    assert end(gone, caplog).getMessage() == "job a1 cancelled"


# --- what the launcher prints ---------------------------------------------------------------------


def batch(source: str, *lines: str) -> dict[str, object]:
    return {"actor_name": source, "pid": 7, "is_err": True, "lines": list(lines)}


OURS = "2026-11-25 23:50:59,001 INFO serve_app.jobs.job_log: job a1 succeeded"
BOOKKEEPING = "INFO 2026-11-25 23:50:56,149 controller 1 -- Deploying new version"
CRASH = "ERROR 2026-11-25 23:50:56,149 controller 1 -- Exception in Replica"


def test_lines_are_printed_as_they_were_written_and_bookkeeping_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Mend 2.7."""
    console = Console(is_json=False)
    console.is_ready = True
    console.print_batch(batch("ServeReplica:lipsync:Ingress", OURS, "a print", ""))
    console.print_batch(batch("ServeController", BOOKKEEPING, "a second line of it"))
    console.print_batch(batch("ServeController", CRASH, "Traceback (most recent call last):"))
    assert capsys.readouterr().err.splitlines() == [
        OURS,
        "(ServeReplica:lipsync:Ingress) a print",
        CRASH,
        "(ServeController) Traceback (most recent call last):",
    ]


def test_while_starting_the_controllers_traces_are_left_to_the_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Mend 2.2: twelve traces around the one good sentence."""
    Console(is_json=False).print_batch(batch("ServeController", CRASH, "Traceback (most", "x: y"))
    assert capsys.readouterr().err == ""


def test_what_is_no_json_yet_is_wrapped_where_json_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Mend 2.7."""
    console = Console(is_json=True)
    console.is_ready = True
    own = json.dumps({"message": "said", "level": "INFO"})
    console.print_batch(batch("ServeReplica:lipsync:Ingress", own, "{no json"))
    console.print_batch(batch("ServeController", CRASH))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == own
    wrapped = [json.loads(line) for line in lines[1:]]
    assert [line["message"] for line in wrapped] == ["{no json", CRASH]
    assert wrapped[1]["level"] == "ERROR" and wrapped[1]["logger"] == "ServeController"
