"""Which bucket holds the outputs, and under which names."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from orchestrator.outputs.signature import Credentials

DEFAULT_REGION = "us-east-1"  # what MinIO and other stores without regions expect
_REGION = re.compile(r"^s3[.-]([a-z0-9-]+)\.(?:backblazeb2\.com|amazonaws\.com)$")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """An S3-compatible bucket.

    `endpoint` is for example `https://s3.us-west-004.backblazeb2.com`, which contains the region;
    for stores whose address does not contain it, set `region`. Buckets are addressed by path, which
    B2, MinIO and Amazon accept. `public_base_url` is where anybody can read the bucket, such as
    `https://f004.backblazeb2.com/file/BUCKET`; without it, readers get signed addresses.
    """

    endpoint: str
    bucket: str
    key_id: str
    secret: str = field(repr=False)
    region: str | None = None
    prefix: str = "avatar/outputs"
    public_base_url: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError("the endpoint of the bucket is not an http(s) address")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", self.bucket):
            raise ValueError("the name of the bucket is not valid")

    @property
    def credentials(self) -> Credentials:
        """Return the key with the region that is set, or that the endpoint names."""
        named = _REGION.match(urlsplit(self.endpoint).hostname or "")
        region = self.region or (named.group(1) if named else DEFAULT_REGION)
        return Credentials(self.key_id, self.secret, region)

    def path_of(self, key: str) -> str:
        """Return the bucket and the key as a quoted path."""
        return f"/{self.bucket}/{quote(key, safe='/~')}"

    def url_of(self, key: str) -> str:
        """Return the address of an object at the endpoint."""
        return f"{self.endpoint.rstrip('/')}{self.path_of(key)}"

    def published_key(self, job_id: str, suffix: str) -> str:
        """Return the key under which the output of a job is published."""
        return self._key(f"{_object_name(job_id)}{suffix}")

    def attempt_key(self, job_id: str, attempt: int, suffix: str) -> str:
        """Return the key that one attempt uploads to. Nobody else reads or writes it."""
        return self._key(f"attempts/{_object_name(job_id)}/{attempt}{suffix}")

    def _key(self, name: str) -> str:
        prefix = self.prefix.strip("/")
        return f"{prefix}/{name}" if prefix else name


def _object_name(job_id: str) -> str:
    """Return a name without separators. Callers choose ids, which may contain anything.

    No plain id contains `~`, so different ids never have the same name.
    """
    if _PLAIN_ID.fullmatch(job_id):
        return job_id
    return f"job~{hashlib.sha256(job_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
