"""What can go wrong with the object store.

OutputError
├── OutputMissing        the attempt has not stored what it reports; its report is refused
├── BucketUnavailable    no answer, 429 or 5xx after all tries; retryable
└── BucketRefused        any other status: the key, the bucket or the region is wrong

Messages name the call and its status, never an address, since those may be signed.
"""

from __future__ import annotations

from typing import ClassVar


class OutputError(Exception):
    """The outputs of an attempt could not be handled."""

    code: ClassVar[str] = "output_error"
    retryable: ClassVar[bool] = False


class OutputMissing(OutputError):
    """An attempt reports an output that is not there, or has another size."""

    code = "output_missing"


class BucketUnavailable(OutputError):
    """The object store did not answer, or answered that it is busy. Call again later."""

    code = "bucket_unavailable"
    retryable = True


class BucketRefused(OutputError):
    """The object store refused a request. Its settings have to be corrected."""

    code = "bucket_refused"
