"""What runs below a test's process, any part of which may end while it is being examined."""

from __future__ import annotations

import psutil


def children_named(name: str) -> list[psutil.Process]:
    """Return the processes of this name below the test's own."""
    return [one for one in psutil.Process().children(recursive=True) if name_of(one) == name]


def name_of(process: psutil.Process) -> str | None:
    """Return the name of a process; None if it has ended meanwhile."""
    try:
        return str(process.name())
    except psutil.Error:
        return None


def command_of(process: psutil.Process) -> list[str]:
    """Return the words of a process's command line, or its name; nothing if it has ended."""
    try:
        return process.cmdline() or [process.name()]
    except psutil.Error:
        return []
