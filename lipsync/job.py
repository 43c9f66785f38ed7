"""What `make` and `preview` have in common: a scratch folder, and the tools that draw."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lipsync.terminal import Terminal
from musetalk_pipeline.loading import ToolOptions, decide, find_models, load_tools
from musetalk_pipeline.options import JobOptions
from serve_app.launcher.console import CHATTER

if TYPE_CHECKING:
    from musetalk_pipeline.pipeline import Tools


@contextmanager
def scratch(terminal: Terminal) -> Iterator[Path]:
    """Give a temporary folder for the length of the block; a signal removes it too."""
    with tempfile.TemporaryDirectory(prefix="lipsync-", ignore_cleanup_errors=True) as folder:
        path = Path(folder)
        terminal.stopping.remove_at_end(path)
        yield path


def load(terminal: Terminal, options: ToolOptions, job: JobOptions) -> Tools:
    """Load the engine and the landmark detector, and say which engine it is and why.

    Raises:
        ModelLoadFailed: a file, a package or the device is missing; the message says what helps.
    """
    models = find_models(options.models, Path.cwd())
    decision = decide(options, job.face.version, models)
    terminal.say(f"The engine is {decision.engine}, because {decision.reason}.")
    with _without_chatter() as screen, terminal.working("loading the engine", screen):
        return load_tools(options, job.face.version, models, decision)


@contextmanager
def _without_chatter() -> Iterator[TextIO]:
    """Keep back what libraries write to standard error inside the block, below Python and whatever
    their log level. All but their greetings is printed afterwards. Gives the real standard error.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with os.fdopen(kept, "w") as screen, tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield screen
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            written.seek(0)
            for line in written.read().decode(errors="replace").splitlines():
                if not CHATTER.match(line):
                    print(line, file=sys.stderr, flush=True)
