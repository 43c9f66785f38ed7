"""One upload as it is stored: a JSON record next to the bytes of the file."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from musetalk_pipeline.files import create_private, part_name, sync
from musetalk_pipeline.media.kinds import MediaFacts
from serve_app.contract.requests import UPLOAD_ID

_ID = re.compile(UPLOAD_ID)
MAX_RECORD_BYTES = 16 * 1024
MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Record:
    """What is stored about an upload, in addition to its bytes.

    `owner`: a keyed digest of the key that sent it. `length`: in bytes, None while it is unknown.
    `created`: seconds since the epoch. `sha256`, `media`: of a finished upload, else None.
    """

    id: str
    owner: str = field(repr=False)
    name: str
    length: int | None
    created: float
    sha256: str | None = None
    media: MediaFacts | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as its owner sees it. `offset`: the bytes that have arrived. `expires`: seconds
    since the epoch.
    """

    record: Record
    offset: int
    expires: float

    @property
    def is_finished(self) -> bool:
        """Whether the file is complete, and can be used."""
        return self.record.media is not None


def is_upload_id(text: str) -> bool:
    """Return whether `text` has the form of an id, and so is safe as the name of a file."""
    return _ID.fullmatch(text) is not None


def shown_name(name: str) -> str:
    """Return the name of a file as it is kept: its last part, printable and short."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in last[:MAX_NAME_CHARS] if c.isprintable())


def read_record(path: Path) -> Record | None:
    """Return the record in a file; None if there is none that can be read."""
    try:
        with path.open("rb") as file:
            fields: dict[str, Any] = json.loads(file.read(MAX_RECORD_BYTES))
        media = fields.pop("media")
        return Record(**fields, media=None if media is None else MediaFacts(**media))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_record(path: Path, record: Record) -> None:
    """Write a record that is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    part = part_name(path)
    try:
        with create_private(part) as file:
            file.write(json.dumps(asdict(record)).encode())
            sync(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
