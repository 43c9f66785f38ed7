"""Log lines of a replica or a command: one format, facts behind the sentence, nothing secret."""

import logging
import sys

from serve_app.redact import RedactingFilter, redact
from serve_app.settings import Environment

PACKAGES = ("serve_app", "musetalk_pipeline", "orchestrator")
# What every record has; whatever else a record carries came in by `extra`.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FactsFormatter(logging.Formatter):
    """Puts the values of `extra` behind the sentence as name=value, redacted."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the trace below it."""
        facts = {name: value for name, value in vars(record).items() if name not in STANDARD}
        line = super().format(record)
        if not facts:
            return line
        first, newline, rest = line.partition("\n")
        shown = (f"{name}={redact(repr(value), self._secrets)}" for name, value in facts.items())
        return " ".join([first, *shown]) + newline + rest


def set_up_logging(env: Environment) -> None:
    """Send this process's log lines to standard error, which Ray collects. Harmless twice."""
    secrets = tuple(secret for secret in _secrets(env) if secret)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FactsFormatter(secrets))
    handler.addFilter(RedactingFilter(secrets))
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    # One line per request, heartbeats included, would drown the jobs; and it shows addresses.
    for name in ("httpx", "httpcore", "b2sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _secrets(env: Environment) -> tuple[str | None, ...]:
    return (
        env.internal_api_key,
        env.worker_token,
        env.webhook_secret,
        env.b2_key_id,
        env.b2_app_key,
    )
