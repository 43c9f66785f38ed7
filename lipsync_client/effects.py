"""Requests, answers, and what a flow asks its driver to do.

A flow is a generator: it yields effects, is sent their results, and returns its own. It contains
all of what a call means (retries, deadlines, uploads in pieces), and no input or output. A driver
(drivers.py) performs the effects, with threads that block or with asyncio.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lipsync_client.errors import BadAnswer

ANSWER_S = 60.0  # until an answer begins, and between two pieces of it
CONNECT_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `url`: a path of the server, or a whole address.

    `is_repeatable`: sending it twice does no harm. `timeout_s`: until the answer begins, and
    between two pieces of it.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = field(default=None, repr=False)
    is_repeatable: bool = True
    timeout_s: float = ANSWER_S


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. The names of its headers are in lower case. `body`: empty while it is read in
    pieces.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Return the body, read as JSON.

        Raises:
            BadAnswer: it is something else.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            text = f"The answer with status {self.status} is not JSON."
            raise BadAnswer(text, status=self.status) from None


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request. The result is its whole answer."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request. The result is its answer without the body, which `Read` gives. The next
    request or pause closes it, and so does the end of the flow.
    """

    request: Request


@dataclass(frozen=True, slots=True)
class Read:
    """The result is the next piece of the open answer; None at its end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Do:
    """Call a function that may block, such as one that writes a file. The result is its result."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Emit:
    """Give a value to the caller: an event, a job of a list, how far a transfer is."""

    value: Any


Effect = Send | Open | Read | Pause | Do | Emit
Flow = Generator[Effect, Any, T]
