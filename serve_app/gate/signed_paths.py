"""Which paths a signed link opens, and what its signature is made over."""

from __future__ import annotations

import os
import re

FILES_PREFIX = "/files/"
STREAM_PLAYLIST, STREAM_FOLDER = "stream.m3u8", "stream"

_JOB = r"/v1/avatar/jobs/(?P<job_id>.+)"  # an id may contain anything
_PLAYLIST = re.compile(_JOB + r"/stream\.m3u8", re.DOTALL)
_FRAGMENT = re.compile(_JOB + r"/stream/[0-9]{1,9}/[a-z0-9.]{1,20}", re.DOTALL)


def subject_of(path: str) -> str | None:
    """Return what a link to the path signs; None if no link opens it.

    `path`: decoded, and without the prefix that the application is under.
    """
    if path.startswith(FILES_PREFIX):
        return file_subject(path.removeprefix(FILES_PREFIX))
    found = _PLAYLIST.fullmatch(path) or _FRAGMENT.fullmatch(path)
    return None if found is None else stream_subject(found["job_id"])


def file_subject(key: str) -> str:
    """Return what a link to a file signs: its name without suffix, since a link to a video also
    opens its sidecar.
    """
    return f"files\n{os.path.splitext(key)[0]}"


def stream_subject(job_id: str) -> str:
    """Return what a link to the stream of a job signs. It opens the playlist and all fragments."""
    return f"stream\n{job_id}"


def is_file(path: str) -> bool:
    """Whether what is at the path may be too large to be sent in one piece."""
    return path.startswith(FILES_PREFIX) or _FRAGMENT.fullmatch(path) is not None
