"""What the launcher prints: its own lines, and those that Ray collects from every process.

Ray puts a coloured prefix before each line, and leaves Serve's own lines as text whatever the
configuration says. Here a line is printed as its process wrote it. If the configuration asks for
JSON, lines of text are wrapped. Serve's bookkeeping (endpoints, replicas added) stays in Ray's log
files.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from typing import Any

from serve_app.telemetry.logs import LAST_WORDS, JsonFormatter

# Of these only warnings and errors are printed.
BOOKKEEPERS = ("ServeController", "ProxyActor", "build_serve_application")
_OURS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ")  # logs.py
_SERVE = re.compile(r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d{4}-\d\d-\d\d ")
# What libraries print to standard error while they load, whatever their log level.
CHATTER = re.compile(
    r"INFO: Created TensorFlow Lite|(WARNING: All log messages|[IW]\d{4} \d\d:\d\d)"
)


class Console:
    """Prints the lines of Ray's processes.

    Until `is_ready`, failures of Serve's controller are not printed, because the launcher says in
    one sentence what failed. The traces are in Ray's log files.
    """

    def __init__(self, is_json: bool) -> None:
        self._is_json = is_json
        self._formatter = JsonFormatter(())
        self._lock = threading.Lock()
        self._last_level: dict[Any, str] = {}  # by process: the level of the line before
        self._saw_last_words = threading.Event()
        self.is_ready = False

    def attach(self) -> None:
        """Replace Ray's own printer, which `ray.init` installs."""
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        dispatcher.remove_handler("ray_print_logs")
        dispatcher.add_handler("lipsync", self.print_batch)
        if self._is_json:
            for name in ("ray", "ray.serve"):
                for handler in logging.getLogger(name).handlers:
                    handler.setFormatter(self._formatter)

    def print_batch(self, batch: dict[str, Any]) -> None:
        """Print those of some lines of one process that matter to an operator."""
        lines = batch.get("lines", ())
        if batch.get("pid") == "autoscaler":  # only the events of its status
            from ray._private.worker import filter_autoscaler_events

            lines = filter_autoscaler_events(lines)
        sink = sys.stderr if batch.get("is_err") else sys.stdout
        source = str(batch.get("actor_name") or batch.get("task_name") or batch.get("pid"))
        with self._lock:
            for line in lines:
                level = self._level(line, batch.get("pid"))
                if self._matters(line, source, level):
                    print(self._shown(line, source, level, batch.get("pid")), file=sink)
                if LAST_WORDS in line:
                    self._saw_last_words.set()
            sink.flush()

    def wait_for_last_words(self, seconds: float) -> None:
        """Wait until the ingress's last line has been printed, because Ray delivers lines late."""
        self._saw_last_words.wait(seconds)

    def _level(self, line: str, pid: Any) -> str:
        """Return the level of a line; a line without one belongs to the line before."""
        found = _SERVE.match(line)
        if found:
            self._last_level[pid] = found["level"]
        elif _OURS.match(line):
            self._last_level[pid] = line.split(" ", 3)[2]
        elif line.startswith("{"):
            self._last_level[pid] = "INFO"
        return self._last_level.get(pid, "INFO")

    def _matters(self, line: str, source: str, level: str) -> bool:
        if not line.strip() or CHATTER.match(line):
            return False
        if source.startswith(BOOKKEEPERS):
            return level not in ("DEBUG", "INFO") and self.is_ready
        return True

    def _shown(self, line: str, source: str, level: str, pid: Any) -> str:
        if not self._is_json:
            return line if _OURS.match(line) or _SERVE.match(line) else f"({source}) {line}"
        if line.startswith("{") and _is_json(line):
            return line
        record = logging.makeLogRecord(
            {"name": source, "levelname": level, "msg": line, "process": pid}
        )
        return self._formatter.format(record)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
