"""The command line as a process of its own, and a server that it may fetch from."""

from __future__ import annotations

import functools
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from command_rig import RUN_S, Done, Run, command, environment


@pytest.fixture
def lipsync(tmp_path: Path) -> Run:
    """Return `lipsync(*arguments, cwd=, **environment)`, which runs the command in `tmp_path`."""

    def run(*arguments: object, cwd: Path = tmp_path, **env: str) -> Done:
        return subprocess.run(
            command(*arguments),
            cwd=cwd,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )

    return run


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address by which a server on the loopback gives its files."""
    folder = tmp_path_factory.mktemp("served")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
