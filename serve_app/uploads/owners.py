"""Who owns an upload: a keyed digest of the key that a request carries, never the key itself."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Owners:
    """Makes names of owners. Without the `secret` of this worker they do not lead to a key."""

    secret: bytes = field(repr=False)

    def of_key(self, key: str | None) -> str:
        """Return the owner that a key stands for. All callers without a key are one owner."""
        text = "owner" if key is None else f"owner\n{key}"
        encoded = text.encode("utf-8", "surrogatepass")
        return hmac.new(self.secret, encoded, hashlib.sha256).hexdigest()
