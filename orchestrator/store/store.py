"""The job store: every operation as one transaction.

    with JobStore.open("sqlite:///orchestrator.db", Rules()) as store:
        job, is_new = store.submit(NewJob("job-1", "admin", video_url, audio_url))
        lease = store.claim(WorkerFacts("machine-7", "main"))
        store.finish(AttemptName("job-1", "machine-7", lease.attempt), Completion(url, metrics))

All methods block, and may be called from any thread. Each raises `StoreUnavailable` if the database
does not answer in time; nothing has changed then, unless the answer to the commit itself was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from orchestrator.scaling.values import Decision
from orchestrator.store import (
    batch_changes,
    batches,
    deliveries,
    fleet_facts,
    forgetting,
    jobs,
    keys,
    learning,
    leases,
    loops,
    migrate,
    overview,
    workers,
)
from orchestrator.store import tables as t
from orchestrator.store.batch_values import Batch, NewBatch
from orchestrator.store.database import Database
from orchestrator.store.delivery_values import Delivery, TakenDelivery, Try
from orchestrator.store.leases import FailureKind
from orchestrator.store.overview import Overview, WorkerFilter, WorkerPage
from orchestrator.store.values import (
    Attempt,
    AttemptName,
    Beat,
    BeatAnswer,
    Completion,
    Event,
    Failure,
    FleetFacts,
    Job,
    JobFilter,
    JsonObject,
    KeyKind,
    Lease,
    LoopStatus,
    NewJob,
    Page,
    Progress,
    Rules,
    StoredDecision,
    StoredKey,
    Worker,
    WorkerFacts,
)

MAX_WORKERS = 10_000  # that scaling sees
NOTICE_WITHIN_S = 24 * 3600.0  # after which the webhook of a batch's end is given up


class JobStore:
    """See the module."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self.rules = rules

    @classmethod
    def open(cls, url: str, rules: Rules) -> Self:
        """Open a database and bring its tables up to date."""
        database = Database(url)
        migrate.upgrade(database.engine)
        return cls(database, rules)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    # Clients ---------------------------------------------------------------------------------

    def submit(self, new: NewJob) -> tuple[Job, bool]:
        """See `jobs.submit`."""
        with self._database.write() as tx:
            return jobs.submit(tx, new, self.rules)

    def get(self, job_id: str, client: str | None = None) -> Job:
        """See `jobs.get`."""
        with self._database.read() as tx:
            return jobs.get(tx, job_id, client)

    def page(self, which: JobFilter, limit: int, cursor: tuple[float, str] | None = None) -> Page:
        """See `jobs.page`."""
        with self._database.read() as tx:
            return jobs.page(tx, which, limit, cursor)

    def cancel(self, job_id: str, client: str | None = None) -> Job:
        """See `jobs.cancel`."""
        with self._database.write() as tx:
            return jobs.cancel(tx, job_id, client)

    def retry(self, job_id: str, client: str | None = None) -> Job:
        """See `jobs.retry`."""
        with self._database.write() as tx:
            return jobs.retry(tx, job_id, client)

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """See `jobs.attempts_of`."""
        with self._database.read() as tx:
            return jobs.attempts_of(tx, job_id)

    def follow(
        self, job_id: str, number: int, client: str | None = None
    ) -> tuple[Job, tuple[Event, ...]]:
        """Return a job and its events after `number`. The events may be newer than the job.

        Raises:
            JobNotFound: there is none for this client.
        """
        with self._database.read() as tx:
            return jobs.get(tx, job_id, client), jobs.events_after(tx, job_id, number)

    def submit_batch(self, new: NewBatch, entered: Sequence[NewJob]) -> tuple[Batch, bool]:
        """See `batch_changes.submit`."""
        with self._database.write() as tx:
            return batch_changes.submit(tx, new, entered, self.rules)

    def get_batch(self, batch_id: str, client: str | None = None) -> Batch:
        """See `batches.of_client`."""
        with self._database.read() as tx:
            return batches.of_client(tx, batch_id, client)

    def cancel_batch(
        self, batch_id: str, client: str | None = None
    ) -> tuple[Batch, tuple[str, ...]]:
        """See `batch_changes.cancel`."""
        with self._database.write() as tx:
            return batch_changes.cancel(tx, batch_id, client)

    # Webhooks --------------------------------------------------------------------------------

    def take_delivery(self, lease_s: float) -> TakenDelivery | None:
        """See `deliveries.take`."""
        with self._database.write() as tx:
            return deliveries.take(tx, lease_s)

    def settle_delivery(self, taken: TakenDelivery, result: Try, pause_s: float | None) -> bool:
        """See `deliveries.settle`."""
        with self._database.write() as tx:
            return deliveries.settle(tx, taken, result, pause_s)

    def seconds_to_next_delivery(self) -> float | None:
        """See `deliveries.seconds_to_next`."""
        with self._database.read() as tx:
            return deliveries.seconds_to_next(tx)

    def deliveries(self, job_id: str, client: str | None = None) -> tuple[Delivery, ...]:
        """Return the deliveries of a job, the first one first.

        Raises:
            JobNotFound: there is none for this client.
        """
        with self._database.read() as tx:
            jobs.get(tx, job_id, client)
            return deliveries.of_job(tx, job_id)

    def deliver_again(self, job_id: str, delivery_id: str, client: str | None = None) -> Delivery:
        """See `deliveries.again`."""
        with self._database.write() as tx:
            jobs.get(tx, job_id, client)
            return deliveries.again(tx, job_id, delivery_id)

    # Workers ---------------------------------------------------------------------------------

    def register(self, worker: WorkerFacts) -> None:
        """See `workers.touch`."""
        with self._database.write(is_durable=False) as tx:
            workers.touch(tx, worker)

    def claim(self, worker: WorkerFacts) -> Lease | None:
        """See `leases.claim`."""
        with self._database.write() as tx:
            return leases.claim(tx, worker, self.rules)

    def beat(self, heard: Beat) -> BeatAnswer:
        """See `workers.beat`."""
        with self._database.write(is_durable=False) as tx:
            return workers.beat(tx, heard, self.rules)

    def progress(self, name: AttemptName, report: Progress) -> None:
        """See `leases.progress`."""
        with self._database.write(is_durable=False) as tx:
            leases.progress(tx, name, report, self.rules)

    def begin_publishing(self, name: AttemptName) -> Job:
        """See `leases.begin_publishing`."""
        with self._database.write() as tx:
            return leases.begin_publishing(tx, name, self.rules)

    def finish(self, name: AttemptName, result: Completion) -> bool:
        """See `leases.finish`."""
        with self._database.write() as tx:
            return leases.finish(tx, name, result)

    def fail(self, name: AttemptName, failure: Failure, kind: FailureKind) -> bool:
        """See `leases.fail`."""
        with self._database.write() as tx:
            return leases.fail(tx, name, failure, kind, self.rules)

    def goodbye(self, worker_id: str, reason: str) -> int:
        """See `workers.goodbye`."""
        with self._database.write() as tx:
            return workers.goodbye(tx, worker_id, reason, self.rules)

    def drain(self, worker_id: str, *, is_drained: bool = True) -> bool:
        """See `workers.drain`."""
        with self._database.write() as tx:
            return workers.drain(tx, worker_id, is_drained=is_drained)

    def workers(self, at_most: int = 1000) -> tuple[Worker, ...]:
        """See `workers.listed`."""
        with self._database.read() as tx:
            return workers.listed(tx, self.rules, at_most=at_most)

    # Scaling ---------------------------------------------------------------------------------

    def fleet_facts(self, target_wait_s: float) -> FleetFacts:
        """Return what scaling decides on, in one snapshot."""
        with self._database.read() as tx:
            return FleetFacts(
                tx.now,
                fleet_facts.work(tx, target_wait_s),
                workers.listed(tx, self.rules, at_most=MAX_WORKERS),
                learning.speeds(tx),
            )

    def hold_loop(self, name: str, holder: str, lease_s: float) -> bool:
        """See `loops.hold`."""
        with self._database.write() as tx:
            return loops.hold(tx, name, holder, lease_s)

    def release_loop(self, name: str, holder: str) -> None:
        """See `loops.release`."""
        with self._database.write() as tx:
            loops.release(tx, name, holder)

    def note_loop(
        self, name: str, holder: str, error: str | None, facts: JsonObject | None
    ) -> None:
        """See `loops.note`."""
        with self._database.write() as tx:
            loops.note(tx, name, holder, error, facts)

    def loop_status(self, name: str) -> LoopStatus | None:
        """See `loops.status`."""
        with self._database.read() as tx:
            return loops.status(tx, name)

    def add_decisions(self, made: Iterable[Decision]) -> tuple[int, ...]:
        """See `loops.add_decisions`."""
        with self._database.write() as tx:
            return loops.add_decisions(tx, made)

    def decision_failed(self, decision_id: int, error: str) -> None:
        """See `loops.decision_failed`."""
        with self._database.write() as tx:
            loops.decision_failed(tx, decision_id, error)

    def decisions(self, limit: int = 100) -> tuple[StoredDecision, ...]:
        """Return the newest decisions of the scaling, the newest first."""
        with self._database.read() as tx:
            return loops.newest_decisions(tx, limit)

    def worker_page(self, which: WorkerFilter, limit: int, after: str | None = None) -> WorkerPage:
        """See `overview.worker_page`."""
        with self._database.read() as tx:
            return overview.worker_page(tx, self.rules, which, limit, after)

    def overview(self) -> Overview:
        """See `overview.overview`."""
        with self._database.read() as tx:
            return overview.overview(tx, self.rules)

    # Keys ------------------------------------------------------------------------------------

    def add_key(self, kind: KeyKind, name: str, *, weight: float | None = None) -> str:
        """See `keys.add`."""
        with self._database.write() as tx:
            return keys.add(tx, kind, name, weight=weight)

    def find_key(self, key_id: str) -> StoredKey | None:
        """See `keys.find`."""
        with self._database.read() as tx:
            return keys.find(tx, key_id)

    def all_keys(self) -> tuple[StoredKey, ...]:
        """See `keys.listed`."""
        with self._database.read() as tx:
            return keys.listed(tx)

    def revoke_key(self, key_id: str) -> None:
        """See `keys.revoke`."""
        with self._database.write() as tx:
            keys.revoke(tx, key_id)

    # Time ------------------------------------------------------------------------------------

    def expire(self) -> tuple[AttemptName, ...]:
        """See `workers.expire`."""
        with self._database.write() as tx:
            return workers.expire(tx, self.rules)

    def forget(self) -> int:
        """Delete what has been kept for long enough. Return how many jobs that were."""
        with self._database.write() as tx:
            batches.notice_quiet_ends(tx, tx.now - NOTICE_WITHIN_S)
        with self._database.write() as tx:
            count = forgetting.forget_jobs(tx, self.rules)
        with self._database.write() as tx:
            forgetting.forget_others(tx, self.rules)
        return count

    def old_uploads(self, at_most: int = 20) -> tuple[tuple[str, int], ...]:
        """Return jobs and numbers of attempts that can upload no more, the oldest first."""
        c = t.attempts.c
        statement = sa.select(c.job_id, c.number).where(c.uploads_until < sa.bindparam("now"))
        with self._database.read() as tx:
            rows = tx.execute(statement.order_by(c.uploads_until).limit(at_most), now=tx.now)
            return tuple((row.job_id, row.number) for row in rows)

    def forget_uploads(self, job_id: str, number: int) -> None:
        """Store that nothing is left of what an attempt has uploaded."""
        c = t.attempts.c
        which = c.job_id == job_id, c.number == number
        with self._database.write() as tx:
            tx.execute(t.attempts.update().where(*which).values(uploads_until=None))

    def count_queued(self, at_most: int) -> int:
        """Return how many jobs wait, counted no further than `at_most`."""
        with self._database.read() as tx:
            return jobs.count_queued(tx, at_most)

    def check(self) -> None:
        """Return if the database answers.

        Raises:
            StoreUnavailable: it does not.
        """
        with self._database.read():
            pass
