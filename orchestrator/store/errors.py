"""Why the store does not do what it is asked to.

StoreError
├── StoreUnavailable   the database cannot be reached or is locked; try again
├── JobNotFound        there is no such job, or it is another client's
├── AttemptGone        the attempt has ended, or the job is another worker's
├── JobConflict        the id or the idempotency key belongs to a job with other content
├── WrongState         the job's state does not allow it
├── QueueFull          too many jobs wait
├── DeliveryNotFound   the job has no such delivery
├── TooManyWebhooks    the job has as many webhooks as one job may have
├── BatchNotFound      there is no such batch, or it is another client's
├── BatchConflict      the idempotency key belongs to a batch with other content
├── BatchEnded         all jobs of the batch have ended
├── BatchedJobRefused  a job of a batch cannot be entered, and so the batch is not
├── TooManyBatches     the job is in as many batches as one job may be in
├── WorkerDrained      the worker may claim nothing more
├── UnknownKey         there is no such key
└── SchemaTooNew       the database is of a newer release
"""

from __future__ import annotations


class StoreError(Exception):
    """An operation of the store was not done. Nothing has changed."""


class StoreUnavailable(StoreError):
    """The database did not answer in time, or refused to be written. Try again later."""


class JobNotFound(StoreError):
    """There is no job with this id for this caller."""


class AttemptGone(StoreError):
    """The report is about an attempt that no longer holds the job. The worker has to stop it."""


class JobConflict(StoreError):
    """The id or the idempotency key belongs to a job with different content. `job_id` is it."""

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class WrongState(StoreError):
    """The job's state does not allow the change. `state` is that state."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


class QueueFull(StoreError):
    """As many jobs wait as may wait."""


class DeliveryNotFound(StoreError):
    """The job has no delivery with this id."""


class TooManyWebhooks(StoreError):
    """The job has as many webhooks as one job may have. Submit another job."""


class BatchNotFound(StoreError):
    """There is no batch with this id for this caller."""


class BatchConflict(StoreError):
    """The idempotency key belongs to a batch with different content."""


class BatchEnded(StoreError):
    """All jobs of the batch have ended. `status` is how."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class BatchedJobRefused(StoreError):
    """A job of a batch cannot be entered, and so the whole batch is not. `index` is the job's, and
    `reason` is what would be raised for the job alone.
    """

    def __init__(self, index: int, reason: Exception) -> None:
        super().__init__(f"{index}: {reason}")
        self.index, self.reason = index, reason


class TooManyBatches(StoreError):
    """The job is in as many batches as one job may be in. Submit another job."""


class WorkerDrained(StoreError):
    """The worker was asked to claim nothing more."""


class UnknownKey(StoreError):
    """There is no key with this id."""


class SchemaTooNew(StoreError):
    """The database was written by a newer release, which this one cannot read."""
