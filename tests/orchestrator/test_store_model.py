"""The store against a model: any order of submissions, claims, heartbeats, reports and restarts.

Reports come late, twice, out of order, and from attempts that have lost their job; answers are
lost; the process dies in the middle of a transaction. After every step the store has to hold what
the model holds: no job is lost, none has two leases, and none two accepted results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from orchestrator.store import leases, workers
from orchestrator.store.database import Opening, Transaction
from orchestrator.store.errors import AttemptGone, WrongState
from orchestrator.store.jobs import submit as submit_job
from orchestrator.store.leases import FailureKind
from orchestrator.store.states import JobState
from orchestrator.store.tables import attempts, jobs, metadata
from orchestrator.store.values import (
    AttemptName,
    Beat,
    Completion,
    Failure,
    ListedJob,
    Progress,
    Rules,
)
from tests.orchestrator.databases import OPEN, Bench, Databases, new_job, open_bench, worker

STEP_S = 10.0
# So long a wait that no job of priority 3 becomes due before one of priority 7.
ROUTING = replace(OPEN, max_wait_s=1e6)
RULES = Rules(
    lease_s=35.0, listing_grace_s=5.0, max_failures=2, max_interruptions=4, routing=ROUTING
)
JOBS = ("j0", "j1")
WORKERS = {"w0": "main", "w1": "expensive", "b0": "buffer"}

REPORTS = ("progress", "finish", "fail")
ACTS = (*("submit", "retry", "claim", "claim", "claim", "beat", "beat", "beat"), *REPORTS)
ACTS += ("fail", "sweep", "sweep", "goodbye", "cancel", "restart", "crash")

job_ids, worker_ids = st.sampled_from(JOBS), st.sampled_from(sorted(WORKERS))


class Crash(Exception):
    """The process dies."""


@dataclass
class Try:
    """An attempt in the model. `reported`: the end that its worker reported and that counted."""

    worker_id: str
    buffer_job_id: str | None
    reported: str | None = None


@dataclass
class Modelled:
    """A job in the model."""

    priority: int
    state: JobState = JobState.QUEUED
    tries: list[Try] = field(default_factory=list)
    failed_on: set[str] = field(default_factory=set)
    failures: int = 0
    interruptions: int = 0
    leased_at: float = 0.0
    lease_until: float = 0.0
    unlisted: int = 0
    output_url: str | None = None

    def start_run(self) -> None:
        self.state, self.failures, self.interruptions = JobState.QUEUED, 0, 0
        self.failed_on = set()

    def interrupt(self) -> None:
        self.interruptions += 1
        is_over = self.interruptions >= RULES.max_interruptions
        self.state = JobState.DEAD if is_over else JobState.QUEUED

    def holder(self) -> str | None:
        return self.tries[-1].worker_id if self.state is JobState.RUNNING else None


class StoreMachine(RuleBasedStateMachine):
    """See the module."""

    url: str
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.clock = 1e9
        self.bench = self.open()
        self.model: dict[str, Modelled] = {}
        self.count = 0

    def open(self) -> Bench:
        """Open the store with the clock of the model, so that the time of the test is nothing."""
        return open_bench(self.url, RULES, Opening(clock=lambda: self.clock))

    def teardown(self) -> None:
        with self.bench.database.write() as tx:
            for table in reversed(metadata.sorted_tables):
                tx.execute(table.delete())
        self.bench.store.close()

    # Clients ---------------------------------------------------------------------------------

    @initialize()
    def submit_all(self) -> None:
        for job_id in JOBS:
            self.submit_again(job_id, 3)

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """Do one thing. One rule draws all of them, so that the rare ones stay rare."""
        StoreMachine.steps += 1
        acts = [each for each in ACTS if each not in REPORTS or self.has_tries()]
        getattr(self, data.draw(st.sampled_from(acts)))(data)

    def submit(self, data: st.DataObject) -> None:
        self.submit_again(data.draw(job_ids), data.draw(st.sampled_from([3, 7])))

    def submit_again(self, job_id: str, priority: int) -> None:
        self.count += 1
        signed = f"https://media.example/v.mp4?signature={self.count}"
        new = new_job(job_id, priority=priority, video_url=signed)
        _, is_new = self.bench.store.submit(new)
        known = self.model.get(job_id)
        ended_badly = (JobState.FAILED, JobState.CANCELLED, JobState.DEAD)
        assert is_new == (known is None or known.state in ended_badly)
        if known is None:
            self.model[job_id] = Modelled(priority)
        elif is_new:
            known.start_run()
            known.priority = priority

    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.model)))
        known = self.model[job_id]
        if known.state.is_terminal:
            with pytest.raises(WrongState):
                self.bench.store.cancel(job_id)
            return
        self.bench.store.cancel(job_id)
        known.state = JobState.CANCELLED

    def retry(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.model)))
        known = self.model[job_id]
        if known.state in (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED):
            with pytest.raises(WrongState):
                self.bench.store.retry(job_id)
            return
        self.bench.store.retry(job_id)
        known.start_run()

    # Workers ---------------------------------------------------------------------------------

    def claim(self, data: st.DataObject) -> None:
        self.claim_as(data.draw(worker_ids))

    def claim_as(self, worker_id: str) -> None:
        lease = self.bench.store.claim(worker(worker_id, WORKERS[worker_id]))
        eligible = {
            job_id: known.priority
            for job_id, known in self.model.items()
            if known.state is JobState.QUEUED and worker_id not in known.failed_on
        }
        if lease is None:
            assert eligible == {}
            return
        assert eligible[lease.job.id] == max(eligible.values())
        known = self.model[lease.job.id]
        known.tries.append(Try(worker_id, lease.buffer_job_id))
        assert lease.attempt == len(known.tries)
        known.state, known.unlisted = JobState.RUNNING, 0
        known.leased_at, known.lease_until = self.clock, self.clock + RULES.lease_s

    def beat(self, data: st.DataObject) -> None:
        listed, has_list = data.draw(st.sets(job_ids)), data.draw(st.booleans())
        holders = {known.holder() for known in self.model.values()} - {None}
        worker_id = data.draw(st.sampled_from(sorted(holders or WORKERS)))
        if data.draw(st.booleans()):
            self.pass_time(1)
        facts = worker(worker_id, WORKERS[worker_id])
        names = tuple(ListedJob(job_id) for job_id in sorted(listed))
        heard = Beat(facts, bool(listed), jobs=names if has_list else None)
        self.bench.store.beat(heard)
        for job_id, known in self.model.items():
            if known.holder() != worker_id:
                continue
            if job_id in listed or (listed and not has_list):
                known.lease_until, known.unlisted = self.clock + RULES.lease_s, 0
            elif self.clock - known.leased_at >= RULES.listing_grace_s:
                known.unlisted += 1
                if known.unlisted == 2:
                    known.interrupt()

    def goodbye(self, data: st.DataObject) -> None:
        worker_id = data.draw(worker_ids)
        self.bench.store.goodbye(worker_id, "it is drained")
        for known in self.model.values():
            if known.holder() == worker_id:
                known.interrupt()

    # Reports, of any attempt there ever was -----------------------------------------------------

    def has_tries(self) -> bool:
        return any(known.tries for known in self.model.values())

    def draw_attempt(self, data: st.DataObject) -> tuple[Modelled, Try, bool, AttemptName]:
        tried = sorted(job_id for job_id, known in self.model.items() if known.tries)
        job_id = data.draw(st.sampled_from(tried))
        known = self.model[job_id]
        number = data.draw(st.integers(1, len(known.tries)))
        attempt = known.tries[number - 1]
        name = AttemptName(job_id, attempt.worker_id, number)
        if attempt.buffer_job_id is not None and data.draw(st.booleans()):
            name = AttemptName(None, None, None, attempt.buffer_job_id)
        is_current = known.state is JobState.RUNNING and number == len(known.tries)
        return known, attempt, is_current, name

    def progress(self, data: st.DataObject) -> None:
        known, _, is_current, name = self.draw_attempt(data)
        if not is_current:
            with pytest.raises(AttemptGone):
                self.bench.store.progress(name, Progress(0.5, "inferring"))
            return
        self.bench.store.progress(name, Progress(0.5, "inferring"))
        known.lease_until, known.unlisted = self.clock + RULES.lease_s, 0

    def finish(self, data: st.DataObject) -> None:
        known, attempt, is_current, name = self.draw_attempt(data)
        self.count += 1
        result = Completion(f"https://files.example/{self.count}.mp4", {"count": self.count})
        if attempt.reported == "success":
            assert not self.bench.store.finish(name, result)
        elif not is_current:
            with pytest.raises(AttemptGone):
                self.bench.store.finish(name, result)
        else:
            assert self.bench.store.finish(name, result)
            attempt.reported = "success"
            known.state, known.output_url = JobState.SUCCEEDED, result.output_url

    def fail(self, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(FailureKind))
        known, attempt, is_current, name = self.draw_attempt(data)
        failure = Failure("It did not work.", {"code": "stage_failed"})
        if attempt.reported == "failure":
            assert not self.bench.store.fail(name, failure, kind)
            return
        if not is_current:
            with pytest.raises(AttemptGone):
                self.bench.store.fail(name, failure, kind)
            return
        assert self.bench.store.fail(name, failure, kind)
        if kind is FailureKind.INTERRUPTION:
            known.interrupt()
            return
        attempt.reported = "failure"
        known.failures += kind is FailureKind.PROCESSING
        is_over = known.failures >= RULES.max_failures
        known.failed_on.add(attempt.worker_id)
        known.state = JobState.DEAD if is_over else JobState.QUEUED
        if kind is FailureKind.INPUT:
            known.state = JobState.FAILED
        self.claim_as(attempt.worker_id)  # which must not get it again

    # Time ------------------------------------------------------------------------------------

    def pass_time(self, steps: int) -> None:
        self.clock += steps * STEP_S

    def sweep(self, data: st.DataObject) -> None:
        self.pass_time(data.draw(st.integers(0, 4)))
        self.bench.store.expire()
        for known in self.model.values():
            if known.state is JobState.RUNNING and known.lease_until < self.clock:
                known.interrupt()

    def restart(self, data: st.DataObject) -> None:
        self.bench.store.close()
        self.bench = self.open()

    def crash(self, data: st.DataObject) -> None:
        """Do something, and die before it is stored. The next process finds nothing of it."""
        worker_id = data.draw(worker_ids)
        facts = worker(worker_id, WORKERS[worker_id])
        acts: dict[str, Callable[[Transaction], object]] = {
            "claim": lambda tx: leases.claim(tx, facts, RULES),
            "submit": lambda tx: submit_job(tx, new_job("never stored"), RULES),
            "goodbye": lambda tx: workers.goodbye(tx, worker_id, "it crashes", RULES),
            "cancel": lambda tx: tx.execute(sa.update(jobs).values(priority=0)),
        }
        act = acts[data.draw(st.sampled_from(sorted(acts)))]
        with pytest.raises(Crash), self.bench.database.write() as tx:
            act(tx)
            raise Crash
        self.restart(data)

    # What holds ------------------------------------------------------------------------------

    @invariant()
    def store_is_as_the_model(self) -> None:
        with self.bench.database.read() as tx:
            found = {row["id"]: row for row in tx.execute(sa.select(jobs)).mappings()}
            tried = tx.execute(sa.select(attempts)).mappings().all()
        assert set(found) == set(self.model)
        for job_id, known in self.model.items():
            row = found[job_id]
            own = [attempt for attempt in tried if attempt["job_id"] == job_id]
            assert (row["state"], row["worker_id"]) == (known.state, known.holder())
            assert (row["failures"], row["interruptions"]) == (known.failures, known.interruptions)
            assert row["output_url"] == known.output_url
            assert len(own) == len(known.tries)
            open_tries = sum(attempt["ending"] is None for attempt in own)
            assert open_tries == (known.state is JobState.RUNNING)
            accepted = sum(attempt["ending"] == "succeeded" for attempt in own)
            assert accepted == (known.state is JobState.SUCCEEDED)


def run_machine(databases: Databases, folder: Path, *, examples: int, steps: int) -> None:
    StoreMachine.url = databases.new(folder)
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=checks,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink][: 3 if examples > 50 else 2],
        database=None,
    )
    run_state_machine_as_test(StoreMachine, settings=chosen)


def test_the_store_does_what_the_model_does(databases: Databases, tmp_path: Path) -> None:
    run_machine(databases, tmp_path, examples=12, steps=50)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_store_does_what_the_model_does_in_ten_thousand_steps(
    databases: Databases, tmp_path: Path
) -> None:
    StoreMachine.steps = 0
    run_machine(databases, tmp_path, examples=280, steps=50)
    assert StoreMachine.steps >= 10_000
