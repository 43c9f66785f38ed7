"""Log lines of a replica or a command: one format, facts beside the sentence, nothing secret."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

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
    """Puts the values of `extra` behind the sentence as name=value, redacted."""

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


class JsonFormatter(logging.Formatter):
    """Makes one JSON object of a record, on one line: time, level, logger, message and facts."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a trace is its field `trace`."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        for name, value in _facts(record).items():
            is_plain = value is None or isinstance(value, bool | int | float)
            line[name] = value if is_plain else redact(str(value), self._secrets)
        trace = record.exc_text
        if trace is None and record.exc_info:
            trace = self.formatException(record.exc_info)
        if trace:
            line["trace"] = redact(trace, self._secrets)
        return json.dumps(line, ensure_ascii=False)


class CallersMistakes(logging.Filter):
    """Drops Serve's line and trace for a call that ended as the job's sender made it end.

    Serve logs every exception of a call as a crash. A bad video, or a job that nobody wants any
    more, is none: the line at the job's end says which it was.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything else pass, real crashes with their traces too."""
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, MediaError | JobCancelled)


def set_up_logging(secrets: tuple[str, ...] = (), *, is_json: bool = False) -> None:
    """Send this process's log lines to standard error, which Ray collects. Harmless twice.

    `secrets` are hidden wherever they appear.
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
