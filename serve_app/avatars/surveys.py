"""The surveys of an avatar's video (musetalk_pipeline.survey), one file for each of them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from musetalk_pipeline.boxes import Box
from musetalk_pipeline.survey import Survey
from musetalk_pipeline.track import Span, Track
from serve_app.avatars.local import LocalAvatars

_NAME = re.compile(r"survey-(\d+)-(\d+)-(\d+)")  # frames reached, and frames a second as a fraction


class StoredSurveys:
    """The surveys of one avatar, as `open_job` uses them."""

    def __init__(self, local: LocalAvatars, avatar_id: str) -> None:
        self._local = local
        self._avatar_id = avatar_id

    def find(self, reached: int, fps: Fraction, *, is_exact: bool) -> Survey | None:
        """Return a survey that is valid for these frames; None if there is none."""
        names = self._local.names(self._avatar_id)
        name = _name(reached, fps)
        if name not in names and not is_exact:
            name = next((other for other in sorted(names) if _reached(other) <= reached), name)
        return self._read(name) if name in names else None

    def find_longer(self, reached: int, fps: Fraction) -> Survey | None:
        """Return the survey of the fewest frames that holds these; None if there is none."""
        names = self._local.names(self._avatar_id)
        longer = [
            (_reached(name), name)
            for name in names
            if _NAME.fullmatch(name) and _reached(name) >= reached
        ]
        of_rate = [each for each in longer if each[1] == _name(int(each[0]), fps)]
        return self._read(min(of_rate)[1]) if of_rate else None

    def _read(self, name: str) -> Survey | None:
        payload = self._local.read(self._avatar_id, name)
        return None if payload is None else _survey(payload)

    def keep(self, reached: int, fps: Fraction, found: Survey) -> None:
        """Keep a survey."""
        text = json.dumps(asdict(found))
        self._local.write(self._avatar_id, _name(reached, fps), text.encode())


def _name(reached: int, fps: Fraction) -> str:
    return f"survey-{reached}-{fps.numerator}-{fps.denominator}"


def _reached(name: str) -> float:
    match = _NAME.fullmatch(name)
    return float("inf") if match is None else int(match[1])


def _survey(payload: bytes) -> Survey:
    # The digest of the file has been verified, so this is what `keep` has written.
    document = json.loads(payload)
    faces = tuple(_box(box) for box in document["faces"])
    return Survey(faces, tuple(document["warnings"]), _track(document.get("track")))


def _track(document: dict[str, Any] | None) -> Track | None:
    if document is None:
        return None
    spans = document["spans"]
    return Track(
        tuple(
            Span(span["start"], span["end"], tuple(span["frames"]), tuple(map(_box, span["boxes"])))
            for span in spans
        )
    )


def _box(document: dict[str, int] | list[int]) -> Box:
    # Surveys from before there were tracks have lists.
    return Box(*document) if isinstance(document, list) else Box(**document)
