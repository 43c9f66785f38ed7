"""What a rented machine is for, written into the name that its vendor keeps.

A name such as `ls--prod--cell--rtx-3090-24gb--1f0c22ab-x7k2q` keeps to the rule of every vendor
(Salad's is the strictest: lower-case letters, digits and hyphens, 2 to 63 characters, a letter
first), and each name is used once, because Salad never accepts a name again. Any machine that can
list the vendor's machines can read it back, a laptop and the head of a cluster alike.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import JsonValue

PREFIX: Final = "ls"
MAX_WORD_CHARS: Final = 16
_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_HASH = re.compile(r"[0-9a-f]{8}")
_NAME = re.compile(
    rf"{PREFIX}--(?P<cluster>{_WORD.pattern})--(?P<kind>[a-z]+)--(?P<node_type>{_WORD.pattern})"
    rf"--(?P<launch_hash>{_HASH.pattern})-[a-z0-9]{{5}}"
)
_NONCE = "abcdefghijklmnopqrstuvwxyz0123456789"


class Kind(StrEnum):
    """What the machine does: part of a Ray cluster, a cell of a fleet, or one measurement."""

    HEAD = "head"
    WORKER = "worker"
    CELL = "cell"
    BENCH = "bench"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a machine is for.

    `cluster` and `node_type` are lower-case words with hyphens, of at most 16 characters;
    `as_word` makes them. For a fleet the node type is the GPU class. `launch_hash` is 8 hexadecimal
    digits of a digest over what the machine was started with; `launch_hash` below makes it.

    Raises:
        ValueError: a part cannot be written into a name.
    """

    cluster: str
    kind: Kind
    node_type: str
    launch_hash: str

    def __post_init__(self) -> None:
        for label, word in (("cluster", self.cluster), ("node type", self.node_type)):
            if not _WORD.fullmatch(word) or len(word) > MAX_WORD_CHARS:
                raise ValueError(
                    f"The {label} {word!r} must be lower-case letters and digits, joined by single "
                    f"hyphens, and have at most {MAX_WORD_CHARS} characters."
                )
        if not _HASH.fullmatch(self.launch_hash):
            raise ValueError(f"{self.launch_hash!r} is not 8 hexadecimal digits.")

    def new_name(self) -> str:
        """Return a name that has not been used before."""
        nonce = "".join(secrets.choice(_NONCE) for _ in range(5))
        parts = (PREFIX, self.cluster, self.kind, self.node_type, f"{self.launch_hash}-{nonce}")
        return "--".join(parts)


def read_name(name: str | None) -> Identity | None:
    """Return what a name says, or None if this program did not make it."""
    found = _NAME.fullmatch(name or "")
    if found is None:
        return None
    try:
        return Identity(
            found["cluster"], Kind(found["kind"]), found["node_type"], found["launch_hash"]
        )
    except ValueError:
        return None


def as_word(text: str) -> str:
    """Return text as a part of a name, such as `rtx-5060ti-16gb` for `RTX-5060Ti-16GB`."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:MAX_WORD_CHARS].strip("-")


def launch_hash(facts: Mapping[str, JsonValue]) -> str:
    """Return 8 hexadecimal digits that change with any of the facts."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
