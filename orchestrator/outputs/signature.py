"""Amazon's signature, version 4, for S3: of an address (pre-signed) and of a request.

The rules are in Amazon's "Authenticating Requests (AWS Signature Version 4)"; the tests have its
examples. Backblaze B2, MinIO and other stores accept the same signatures. Botocore would do this
too, with 100 MB of other services and a release every day.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote, urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"  # of pre-signed addresses, whose body is not known yet
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MAX_EXPIRES_S = 7 * 24 * 3600  # S3's limit


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key of the object store, and the region that its signatures are for."""

    key_id: str
    secret: str = field(repr=False)
    region: str


def presign(
    method: str,
    url: str,
    credentials: Credentials,
    now: datetime,
    *,
    expires_s: int,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Return `url` with a signature that allows one `method` on it until `now` plus `expires_s`.

    `url` has a path that is already quoted, and no query. `now` is in UTC. The request has to be
    sent with exactly these `headers`.

    Raises:
        ValueError: `expires_s` is not between 1 s and seven days.
    """
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise ValueError(f"a signed address is valid for 1 s to {MAX_EXPIRES_S} s, not {expires_s}")
    signed = _signed_headers(url, headers or {})
    query = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{credentials.key_id}/{_scope(credentials, now)}",
        "X-Amz-Date": _stamp(now),
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": ";".join(signed),
    }
    text = _query_text(query)
    signature = _signature(method, url, text, signed, UNSIGNED_PAYLOAD, credentials, now)
    return f"{url}?{text}&X-Amz-Signature={signature}"


def sign_headers(
    method: str,
    url: str,
    credentials: Credentials,
    now: datetime,
    *,
    headers: Mapping[str, str] | None = None,
    payload_sha256: str = EMPTY_SHA256,
) -> dict[str, str]:
    """Return the headers of a signed request, `headers` included. `url` has no query."""
    own = {"x-amz-date": _stamp(now), "x-amz-content-sha256": payload_sha256}
    signed = _signed_headers(url, {**(headers or {}), **own})
    signature = _signature(method, url, "", signed, payload_sha256, credentials, now)
    login = (
        f"{ALGORITHM} Credential={credentials.key_id}/{_scope(credentials, now)},"
        f"SignedHeaders={';'.join(signed)},Signature={signature}"
    )
    return {**(headers or {}), **own, "Authorization": login}


def _signature(
    method: str,
    url: str,
    query: str,
    signed: Mapping[str, str],
    payload_sha256: str,
    credentials: Credentials,
    now: datetime,
) -> str:
    canonical = "\n".join(
        (
            method,
            urlsplit(url).path or "/",
            query,
            *(f"{name}:{value}" for name, value in signed.items()),
            "",
            ";".join(signed),
            payload_sha256,
        )
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join((ALGORITHM, _stamp(now), _scope(credentials, now), digest))
    key = f"AWS4{credentials.secret}".encode()
    for part in (*_scope(credentials, now).split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()


def _signed_headers(url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the host and `headers` as they are signed: lower-case names in order, plain spaces."""
    named = {"host": urlsplit(url).netloc.rpartition("@")[2], **headers}
    return dict(sorted((name.lower(), " ".join(value.split())) for name, value in named.items()))


def _query_text(query: Mapping[str, str]) -> str:
    return "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(query.items()))


def _scope(credentials: Credentials, now: datetime) -> str:
    return f"{now:%Y%m%d}/{credentials.region}/s3/aws4_request"


def _stamp(now: datetime) -> str:
    return f"{now:%Y%m%dT%H%M%SZ}"
