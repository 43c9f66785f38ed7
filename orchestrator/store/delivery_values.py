"""The values of webhooks: a delivery, its lease, and its tries."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.store.values import JsonObject


@dataclass(frozen=True, slots=True)
class Try:
    """One try at a delivery: the answer's status, or why there was none."""

    code: int | None
    error: str | None = None
    at: float | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether the target has accepted the event."""
        return self.error is None


@dataclass(frozen=True, slots=True)
class TakenDelivery:
    """A delivery under a lease.

    `tries` are those since it was queued, `taken` all of them, both with this one. `age_s` is the
    time since it was queued. `snapshot` is the job as it was when it ended, with the columns of its
    rows; if `is_of_batch`, it is that of a batch, as `batch_values.as_json` writes it. An event of
    an earlier release of a worker has what it sends instead, as `shown`.
    """

    id: str
    is_of_batch: bool
    client: str
    url: str = field(repr=False)
    event: str
    snapshot: JsonObject = field(repr=False)
    created_at: float
    tries: int
    taken: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """The log of one webhook for one end of its job. `due_at` is the next try."""

    id: str
    url: str = field(repr=False)
    event: str
    status: str
    tries: int
    created_at: float
    due_at: float | None
    ended_at: float | None
    log: tuple[Try, ...]
