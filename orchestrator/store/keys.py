"""Keys of clients and tokens of workers. Only their scrypt digests are stored.

A key is `<id>.<secret>`: the id finds its row, and the secret, 256 random bits, is compared with
the digest in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

import sqlalchemy as sa

from orchestrator.store.database import Transaction
from orchestrator.store.errors import UnknownKey
from orchestrator.store.tables import accounts, keys
from orchestrator.store.values import KeyKind, StoredKey

MAX_KEY_CHARS = 200
# RFC 7914's interactive parameters: about 50 ms and 16 MiB for each new key that is checked.
_N, _R, _P = 2**14, 8, 1


def add(tx: Transaction, kind: KeyKind, name: str, *, weight: float | None = None) -> str:
    """Store a new key and return it. It cannot be read again.

    A client with `weight` 2 gets twice the service of one with weight 1, which is the default,
    while both have jobs. None leaves the weight of a client that has keys as it is.
    """
    if weight is not None:
        account = tx.insert(accounts).values(client=name, weight=weight, used=0.0)
        changed = {"weight": weight}
        tx.execute(account.on_conflict_do_update(index_elements=["client"], set_=changed))
    key_id, secret, salt = secrets.token_hex(8), secrets.token_urlsafe(32), secrets.token_bytes(16)
    tx.execute(
        keys.insert().values(
            id=key_id,
            kind=kind,
            name=name,
            salt=salt,
            digest=_digest(secret, salt),
            created_at=tx.now,
        )
    )
    return f"{key_id}.{secret}"


def find(tx: Transaction, key_id: str) -> StoredKey | None:
    """Return a key that has not been revoked; None if there is none."""
    known = keys.c.id == key_id, keys.c.revoked_at.is_(None)
    row = tx.execute(sa.select(keys).where(*known)).mappings().one_or_none()
    return None if row is None else StoredKey(**row)


def listed(tx: Transaction) -> tuple[StoredKey, ...]:
    """Return all keys, the oldest first, those that were revoked too."""
    rows = tx.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id)).mappings()
    return tuple(StoredKey(**row) for row in rows)


def revoke(tx: Transaction, key_id: str) -> None:
    """Let a key no longer be accepted.

    Raises:
        UnknownKey: there is none with this id that is accepted.
    """
    known = keys.c.id == key_id, keys.c.revoked_at.is_(None)
    if tx.execute(keys.update().where(*known).values(revoked_at=tx.now)).rowcount == 0:
        raise UnknownKey(key_id)


def id_of(presented: str) -> str:
    """Return the public part of a key."""
    return presented.partition(".")[0]


def is_right(presented: str, stored: StoredKey) -> bool:
    """Return whether a key is the stored one. This takes a while on purpose."""
    secret = presented.partition(".")[2]
    return hmac.compare_digest(_digest(secret, stored.salt), stored.digest)


def _digest(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode("utf-8", "replace"), salt=salt, n=_N, r=_R, p=_P)
