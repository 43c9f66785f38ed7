"""Where uploads are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _ignore(value: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class UploadCounts:
    """Receives what happens to uploads, from any thread.

    Attributes:
        stored: Is called with the number of bytes of each piece that was stored, at least 1.
        finished: Is called with the kind of each file that is whole: video, audio, picture.
        kept: Is called with the bytes that all uploads take, whenever that has changed.
    """

    stored: Callable[[int], None] = _ignore
    finished: Callable[[str], None] = _ignore
    kept: Callable[[int], None] = _ignore


NOT_COUNTED = UploadCounts()
