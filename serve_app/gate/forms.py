"""Forms (multipart/form-data) as a stream of parts, none of which is ever held as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Scope

from serve_app.gate.asgi import header

FORM = b"multipart/form-data"
MAX_NAME_CHARS = 64
_HEADERS, _HEADER_BYTES = 8, 4096


class FormInvalid(Exception):
    """The body is not the form that it should be. The message is a sentence for its sender."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part of the form begins; `file_name` is None if it is a plain field."""

    name: str
    file_name: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the part that has begun last."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part that has begun last is complete."""


PartEvent = PartBegin | PartData | PartEnd


def is_form(scope: Scope) -> bool:
    """Whether the body of a request is declared as a form."""
    kind, _ = _content_type(scope)
    return kind == FORM


def _content_type(scope: Scope) -> tuple[bytes, dict[bytes, bytes]]:
    return parse_options_header(
        (header(scope["headers"], b"content-type") or b"").decode("latin-1")
    )


async def part_events(
    scope: Scope, chunks: AsyncIterator[bytes], max_parts: int
) -> AsyncGenerator[PartEvent, None]:
    """Yield the parts of a form while it arrives.

    Raises:
        FormInvalid: it breaks the format, or has too many parts.
    """
    reader = _PartReader(scope, max_parts)
    async for chunk in chunks:
        for event in reader.read(chunk):
            yield event
    reader.check_end()


class _PartReader:
    """Turns the callbacks of the parser into events."""

    def __init__(self, scope: Scope, max_parts: int) -> None:
        boundary = _content_type(scope)[1].get(b"boundary")
        if not boundary:
            raise FormInvalid("The Content-Type of the form lacks its boundary.")
        self._events: deque[PartEvent] = deque()
        self._field, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._parts_left, self._is_complete = max_parts, False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part,
                    "on_header_field": self._on_field,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": lambda: self._events.append(PartEnd()),
                    "on_end": self._on_end,
                },
                max_header_count=_HEADERS,
                max_header_size=_HEADER_BYTES,
            )
        except FormParserError as exc:
            raise _broken() from exc

    def read(self, chunk: bytes) -> list[PartEvent]:
        """Return the events that a chunk of the body completes."""
        try:
            self._parser.write(chunk)
        except FormParserError as exc:
            raise _broken() from exc
        events = list(self._events)
        self._events.clear()
        return events

    def check_end(self) -> None:
        """Check that the form was complete when its body ended."""
        if not self._is_complete:
            raise FormInvalid("The form ends before its last boundary.")

    def _on_part(self) -> None:
        self._parts_left -= 1
        if self._parts_left < 0:
            raise FormInvalid("The form has too many parts.")
        self._headers = {}

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"").decode("latin-1")
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name or len(name) > MAX_NAME_CHARS:
            raise FormInvalid("A part of the form has no name, or a very long one.")
        file_name = options.get(b"filename")
        shown = None if file_name is None else file_name.decode("utf-8", "replace")
        self._events.append(PartBegin(name, shown))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(data[start:end]))

    def _on_end(self) -> None:
        self._is_complete = True


def _broken() -> FormInvalid:
    return FormInvalid("The body is not a valid form (multipart/form-data).")
