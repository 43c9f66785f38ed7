"""Results onto a disk: in a file beside the target until it is complete, and continued if it
breaks off, also by a later call.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin

from lipsync_client.calls import get_job
from lipsync_client.effects import Answer, Do, Emit, Flow, Open, Read, Request
from lipsync_client.errors import BadAnswer, JobFailed, LipsyncError, Unreachable
from lipsync_client.exchange import Retries, Trying, error_of, may_pass
from lipsync_client.following import whole
from lipsync_client.values import Transfer

REDIRECTIONS, MOST_REDIRECTIONS = frozenset({301, 302, 303, 307, 308}), 5
# A link may have expired, and the next answer about the job has a new one.
WITH_A_NEW_LINK = frozenset({"link_expired", "link_wrong"})


class NotFinished(LipsyncError):
    """The job has not ended yet, so there is no result."""

    code = "job_not_ended"
    retryable = True


def download(
    job_id: str, target: Path, retries: Retries, *, may_overwrite: bool = False
) -> Flow[Path]:
    """Fetch the result of a job into `target`, and emit a `Transfer` after each piece.

    Raises:
        FileExistsError: `target` exists, and `may_overwrite` is False.
        OSError: it cannot be written.
        JobFailed, NotFinished: the job has no result, or none yet.
    """
    if not may_overwrite and (yield Do(target.exists)):
        raise FileExistsError(17, "The file exists", str(target))
    trying = Trying(retries)
    while True:
        job = yield from get_job(job_id, retries)
        if job.output_url is None:
            if job.has_ended:
                raise JobFailed(job)
            hint = "Wait for its end first."
            raise NotFinished(f"The job {job_id} is {job.status}.", hint=hint)
        try:
            part = yield from _fetch(job.output_url, target, trying)
        except LipsyncError as error:
            is_new_link_due = error.code in WITH_A_NEW_LINK
            if not (isinstance(error, Unreachable) or may_pass(error) or is_new_link_due):
                raise
            yield from trying.after(error)
            continue
        yield Do(partial(_put_in_place, part, target))
        return target


@dataclass(frozen=True, slots=True)
class _Content:
    """What is fetched: its validator (an ETag or a date, empty if there is none), and its size."""

    validator: str
    size: int | None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> _Content:
        validator = headers.get("etag", "")
        # A weak one does not promise equal bytes.
        if not validator or validator.startswith("W/"):
            validator = headers.get("last-modified", "")
        length = headers.get("content-length", "")
        return cls(validator, int(length) if length.isascii() and length.isdigit() else None)

    def part(self, target: Path) -> Path:
        """Return where the content grows. The name tells it from any other content."""
        name = hashlib.sha256(f"{self.validator} {self.size}".encode()).hexdigest()[:12]
        return target.with_name(f".{target.name}.{name}.part")


def _fetch(url: str, target: Path, trying: Trying) -> Flow[Path]:
    """Fetch what is missing of the content; return the file that it is in."""
    answer = yield from _opened(Request("GET", url))
    content = _Content.of(answer.headers)
    part = content.part(target)
    have = (yield Do(lambda: _size(part))) if content.validator and content.size else 0
    if have and have == content.size:
        return part
    if have < (content.size or 0) and have:
        wanted = {"Range": f"bytes={have}-", "If-Range": content.validator}
        answer = yield from _opened(Request("GET", url, wanted))
    if answer.status != 206:
        have = 0
    elif not answer.headers.get("content-range", "").startswith(f"bytes {have}-"):
        raise BadAnswer("The server sends another part of the file than the one that is missing.")
    yield from _write(part, have, content.size, trying)
    return part


def _opened(request: Request) -> Flow[Answer]:
    """Open an answer, behind a few redirections. The key goes to the server alone (drivers.py)."""
    for _ in range(MOST_REDIRECTIONS):
        answer: Answer = yield Open(request)
        if answer.status not in REDIRECTIONS or "location" not in answer.headers:
            break
        request = replace(request, url=urljoin(request.url, answer.headers["location"]))
    if not answer.is_success:
        raise error_of((yield from whole(answer)))
    return answer


def _write(part: Path, have: int, size: int | None, trying: Trying) -> Flow[None]:
    file: BinaryIO = yield Do(lambda: part.open("ab" if have else "wb"))
    with file:
        yield Emit(Transfer(have, size))
        while (piece := (yield Read())) is not None:
            yield Do(partial(file.write, piece))
            have += len(piece)
            trying.reached(have)
            yield Emit(Transfer(have, size))
    if size is not None and have < size:
        raise Unreachable("The download broke off.")


def _put_in_place(part: Path, target: Path) -> None:
    """Give the complete file its name, and remove what is left of earlier tries."""
    os.replace(part, target)
    for other in target.parent.glob(f".{escape(target.name)}.*.part"):
        other.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
