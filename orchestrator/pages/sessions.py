"""Sessions of the operator: who has signed in with the admin key, until when.

A session is a cookie: a random id and an end, signed. The key of the signature is derived from the
admin key, so that a session ends with the key that it was opened by, and every process of the
service accepts it. The admin key itself is not in it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

SESSION_S = 12 * 3600
MAX_CLOSED = 1000  # ids of sessions that were signed out, the newest


@dataclass(frozen=True, slots=True)
class Session:
    """An open session. `ends_at` is in seconds since 1970."""

    id: str
    ends_at: int


class Sessions:
    """Opens, reads and closes sessions. Without an admin key there are none."""

    def __init__(self, admin_key: str | None, clock: Callable[[], float] = time.time) -> None:
        self._key = None if admin_key is None else _mac(admin_key.encode(), "sessions of pages")
        self._clock = clock
        self._closed: OrderedDict[str, None] = OrderedDict()

    def open(self) -> str:
        """Return the cookie of a new session."""
        assert self._key is not None, "nobody can have signed in"
        named = f"{secrets.token_hex(16)}.{int(self._clock()) + SESSION_S}"
        return f"{named}.{_mac(self._key, f'session {named}').hex()}"

    def read(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie; None if there is none that is open."""
        named, _, mac = (cookie or "").rpartition(".")
        if self._key is None or not _equal(mac, _mac(self._key, f"session {named}").hex()):
            return None
        session_id, _, ends_at = named.partition(".")
        session = Session(session_id, int(ends_at))
        is_open = session.ends_at > self._clock() and session.id not in self._closed
        return session if is_open else None

    def close(self, session: Session) -> None:
        """Refuse a session from now on, in this process, also where its cookie was copied."""
        self._closed[session.id] = None
        while len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)

    def form_token(self, session: Session) -> str:
        """Return what the forms of a session have in them, which other sites do not know."""
        assert self._key is not None
        return _mac(self._key, f"form {session.id}").hex()

    def is_form_token(self, session: Session, presented: str) -> bool:
        """Return whether a form is of this session."""
        return _equal(presented, self.form_token(session))


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8", "replace"), hashlib.sha256)


def _equal(presented: str, right: str) -> bool:
    return hmac.compare_digest(presented.encode("utf-8", "replace"), right.encode())
