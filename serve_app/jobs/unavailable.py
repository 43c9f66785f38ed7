"""Logs that the registry cannot be used, but not at every try."""

import logging
import time

from orchestrator.store.errors import StoreUnavailable

logger = logging.getLogger(__name__)

LOG_AGAIN_S = 30.0  # a fault that lasts is logged that often


class UnavailableLog:
    """Logs a lasting fault of the registry at its start and then every `LOG_AGAIN_S` seconds.

    `text`: the log line. Facts of the fault follow it.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._logged_at = float("-inf")

    def __call__(self, exc: StoreUnavailable, **facts: object) -> None:
        """Log `exc`, unless that was done a short time ago."""
        now = time.monotonic()
        if now - self._logged_at > LOG_AGAIN_S:
            self._logged_at = now
            logger.error(self._text, extra={**facts, "error": str(exc)})
