"""Log lines as JSON, one object a line: time, level, logger, message, and the facts.

A line that concerns a job, an attempt or a worker has `job_id`, `attempt` and `worker_id`.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from pythonjsonlogger.json import JsonFormatter

NAMES = {"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "trace"}
QUIET = ("alembic", "sqlalchemy.engine", "httpx", "httpcore")


class LineFormatter(JsonFormatter):
    """Makes one JSON object of a record, with the fields that the workers' lines have."""

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message", "process"],
            rename_fields=NAMES,
            json_ensure_ascii=False,
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the record's time in ISO 8601, UTC, to the millisecond."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def set_up_logs() -> None:
    """Write log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
