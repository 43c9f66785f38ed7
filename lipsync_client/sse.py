"""Server-sent events, read from the pieces in which they arrive."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from lipsync_client.errors import BadAnswer

MOST_CHARS = 4 * 1024 * 1024  # of one event; a job has some kB


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id`: None if it has none of its own."""

    name: str
    data: str
    id: str | None


class EventParser:
    """Turns bytes into events, whatever the places where they are cut."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""
        self._name = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that end with this piece.

        Raises:
            BadAnswer: an event is longer than any of this API.
        """
        self._text += self._decode(piece)
        # A carriage return at the end may be the first half of a line's end.
        *lines, self._text = self._split()
        for line in lines:
            if line:
                self._field(line)
            elif (event := self._event()) is not None:
                yield event
        if len(self._text) + sum(map(len, self._data)) > MOST_CHARS:
            raise BadAnswer("The stream of events has one that is too long.")

    def _split(self) -> list[str]:
        text, kept = self._text, ""
        if text.endswith("\r"):
            text, kept = text[:-1], "\r"
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        lines[-1] += kept
        return lines

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value

    def _event(self) -> Event | None:
        """Return the event that an empty line ends; None after comments alone."""
        data, self._data = self._data, []
        name, self._name = self._name, ""
        own_id, self._id = self._id, None
        return Event(name or "message", "\n".join(data), own_id) if data else None
