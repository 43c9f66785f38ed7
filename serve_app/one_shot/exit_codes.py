"""The exit codes of every command that does something and ends, in one table.

Light to import, because the command line prints them in its help.
"""

from __future__ import annotations

import signal

from musetalk_pipeline.errors import MediaError, PipelineError, SourceUnreachable

DONE, OWN_FAULT, BAD_INPUT = 0, 1, 2
SIGNALLED = 128  # plus the signal's number: a shell's exit code of a process that it ended
INTERRUPTED = SIGNALLED + signal.SIGINT
TERMINATED = SIGNALLED + signal.SIGTERM


def exit_code(error: PipelineError) -> int:
    """Return the exit code that says whose fault an error is.

    A source that cannot be reached counts as a fault of this machine's network: another machine
    finds out, whereas a job that is given up for a broken resolver is lost.
    """
    is_input = isinstance(error, MediaError) and not isinstance(error, SourceUnreachable)
    return BAD_INPUT if is_input else OWN_FAULT
