"""Log lines of a replica or a command: text or JSON, a sentence and its facts, nothing secret."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger import json as json_lines

from musetalk_pipeline.errors import JobCancelled, MediaError
from serve_app.telemetry.redact import RedactingFilter, redact

PACKAGES = ("serve_app", "musetalk_pipeline", "orchestrator")
SERVE_LOGGER = "ray.serve"
# What every record has; whatever else a record carries came in by `extra`.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# What Ray and Serve add to records for their own formatters.
RAYS_OWN = frozenset(
    {"_ray_timestamp_ns", "log_to_stderr", "serve_access_log", "skip_context_filter"}
)


class FactsFormatter(logging.Formatter):
    """Puts the values of `extra` after the sentence as name=value, redacted."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the trace below it."""
        facts = _facts(record)
        line = super().format(record)
        if not facts:
            return line
        first, newline, rest = line.partition("\n")
        shown = (f"{name}={redact(repr(value), self._secrets)}" for name, value in facts.items())
        return " ".join([first, *shown]) + newline + rest


class JsonFormatter(json_lines.JsonFormatter):
    """Makes one JSON object of a record, on one line: time, level, logger, message and facts.

    A trace is its field `trace`.
    """

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message", "process"],
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "name": "logger",
                "exc_info": "trace",
            },
            reserved_attrs=sorted(STANDARD | RAYS_OWN),
            json_ensure_ascii=False,
        )
        self._secrets = secrets

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the record's time in ISO 8601, UTC, to the millisecond."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Redact every text, and make text of what JSON cannot hold."""
        return {name: self._shown(value) for name, value in log_data.items()}

    def _shown(self, value: object) -> object:
        is_plain = value is None or isinstance(value, bool | int | float)
        return value if is_plain else redact(str(value), self._secrets)


class CallersMistakes(logging.Filter):
    """Drops Serve's line and trace for a call that ended as the job's sender made it end.

    Serve logs every exception of a call as a crash. A bad video and a job that was cancelled are
    not crashes: the line at the job's end says which it was.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything else pass, including real crashes with their traces."""
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, MediaError | JobCancelled)


def set_up_logging(secrets: tuple[str, ...] = (), *, is_json: bool = False) -> None:
    """Send this process's log lines to standard error, which Ray collects.

    `secrets` are hidden wherever they appear. Calling it twice does no harm.
    """
    formatter = JsonFormatter(secrets) if is_json else FactsFormatter(secrets)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(RedactingFilter(secrets))
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    # One line per request, heartbeats included, would drown the jobs; and it shows addresses.
    for name in ("httpx", "httpcore", "b2sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    serve = logging.getLogger(SERVE_LOGGER)
    serve.filters[:] = [one for one in serve.filters if not isinstance(one, CallersMistakes)]
    serve.addFilter(CallersMistakes())
    if is_json:
        # Serve writes text to standard error whatever its configuration says.
        for one in serve.handlers:
            if type(one) is logging.StreamHandler:
                one.setFormatter(formatter)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    hidden = STANDARD | RAYS_OWN
    return {name: value for name, value in vars(record).items() if name not in hidden}


# The ingress logs this when it has drained: what its jobs wrote comes before.
LAST_WORDS = "no job runs here any more"
