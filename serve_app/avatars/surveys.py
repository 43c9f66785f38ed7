"""The surveys of an avatar's video (musetalk_pipeline.survey), one file for each of them."""

from __future__ import annotations

import json
import re
from fractions import Fraction

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.survey import Survey
from serve_app.avatars.local import LocalAvatars

_NAME = re.compile(r"survey-(\d+)-(\d+)-(\d+)")  # frames reached, and frames a second as a fraction


class StoredSurveys:
    """The surveys of one avatar, as `open_job` uses them."""

    def __init__(self, local: LocalAvatars, avatar_id: str) -> None:
        self._local = local
        self._avatar_id = avatar_id

    def find(self, reached: int, fps: Fraction, *, is_cropped: bool) -> Survey | None:
        """Return a survey that is valid for these frames; None if there is none."""
        names = self._local.names(self._avatar_id)
        name = _name(reached, fps)
        if name not in names and not is_cropped:
            name = next((other for other in sorted(names) if _reached(other) <= reached), name)
        if name not in names:
            return None
        payload = self._local.read(self._avatar_id, name)
        return None if payload is None else _survey(payload)

    def keep(self, reached: int, fps: Fraction, found: Survey) -> None:
        """Keep a survey."""
        boxes = [(box.x0, box.y0, box.x1, box.y1) for box in found.faces]
        text = json.dumps({"faces": boxes, "warnings": found.warnings})
        self._local.write(self._avatar_id, _name(reached, fps), text.encode())


def _name(reached: int, fps: Fraction) -> str:
    return f"survey-{reached}-{fps.numerator}-{fps.denominator}"


def _reached(name: str) -> float:
    match = _NAME.fullmatch(name)
    return float("inf") if match is None else int(match[1])


def _survey(payload: bytes) -> Survey:
    # The digest of the file has been verified, so this is what `keep` has written.
    document = json.loads(payload)
    return Survey(tuple(Box(*box) for box in document["faces"]), tuple(document["warnings"]))
