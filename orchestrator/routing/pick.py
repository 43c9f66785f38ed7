"""Which job a worker gets: `pick` or `rank` for one claim, `assign` for all workers at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.routing.eligibility import refusal
from orchestrator.routing.order import due_at, tier_order
from orchestrator.routing.rules import RoutingRules
from orchestrator.routing.values import (
    Account,
    Accounts,
    QueuedJob,
    Situation,
    Tier,
    Worker,
)


def pick(
    worker: Worker,
    candidates: Iterable[QueuedJob],
    situation: Situation,
    rules: RoutingRules,
    now: float,
) -> QueuedJob | None:
    """Return the job that `worker` gets at the instant `now`; None if no candidate is for it.

    The client with the lowest virtual time comes first, and of its jobs the one that is due first.
    Jobs that the worker may not have are passed over. Nothing is changed: store `charge`'s answer
    in the transaction that gives the job out.

    The caller provides, in one snapshot of the database:

    - `candidates`: the first `K` queued jobs by `due_at` of each of the `C` clients with the lowest
      `max(clock, used)` among those that have queued jobs, for example 16 jobs of 16 clients, 256
      rows. The query leaves out what this worker can never have: jobs that failed on it, and jobs
      whose requirements its GPU does not meet. Otherwise `K` such jobs would hide the other jobs of
      their client. Jobs that are too young for the worker's tier may be among the rows.
    - `situation.groups`: one row for each (tier, provider, GPU class) of live workers, which is
      some ten rows, and `situation.queue_length`, which may be counted up to the largest
      `min_queue_length` of the rules and no further.
    - `situation.accounts`: the accounts of the clients among the candidates, and the clock.
    """
    return next(iter(rank(worker, candidates, situation, rules, now)), None)


def rank(
    worker: Worker,
    candidates: Iterable[QueuedJob],
    situation: Situation,
    rules: RoutingRules,
    now: float,
) -> list[QueuedJob]:
    """Return all candidates that `worker` may have now, the one that `pick` picks first.

    For stores whose claim goes on to the next job if another claim has just locked the first one.
    The caller provides the same rows as for `pick`. Charge only the job that was given out.
    """
    order = tier_order(situation.groups, situation.prices, rules)
    return _ranked(worker, candidates, situation, rules, order=order, now=now)


def _ranked(
    worker: Worker,
    candidates: Iterable[QueuedJob],
    situation: Situation,
    rules: RoutingRules,
    *,
    order: Sequence[Tier],
    now: float,
) -> list[QueuedJob]:
    allowed = [
        job
        for job in candidates
        if refusal(worker, job, situation, rules, order=order, now=now) is None
    ]
    start_of = situation.accounts.start_of
    return sorted(
        allowed,
        key=lambda job: (
            start_of(job.client),
            due_at(job, rules),
            job.submitted_at,
            job.job_id,
        ),
    )


def charge(job: QueuedJob, accounts: Accounts) -> Accounts:
    """Return the accounts after `job` was given out: that of its client and the clock change.

    In a database, both only grow: `UPDATE … SET used = :used WHERE client = :client AND used <
    :used`. Claims that run concurrently may then charge one job too little, which is harmless. An
    interrupted job is charged again when it is given out again, since it uses the time again.
    """
    start = accounts.start_of(job.client)
    account = accounts.clients.get(job.client, Account())
    charged = replace(account, used=start + max(job.expected_s, 0.0) / account.weight)
    return Accounts(max(accounts.clock, start), {**accounts.clients, job.client: charged})


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job and the worker that gets it."""

    job: QueuedJob
    worker: Worker


def assign(
    jobs: Sequence[QueuedJob],
    workers: Sequence[Worker],
    situation: Situation,
    rules: RoutingRules,
    now: float,
) -> tuple[Assignment, ...]:
    """Return what would happen if all workers claimed until none gets a job, in the tiers' order.

    Within a tier, cheaper workers come first. This serves pages, simulations and tests; a claim
    needs only `pick`.
    """
    order = tier_order(situation.groups, situation.prices, rules)
    waiting = {job.job_id: job for job in jobs}
    found: list[Assignment] = []
    for worker in sorted(workers, key=lambda worker: _preference(worker, situation, order)):
        for _ in range(worker.free):
            ranked = _ranked(worker, waiting.values(), situation, rules, order=order, now=now)
            if not ranked:
                break
            job = ranked[0]
            del waiting[job.job_id]
            found.append(Assignment(job, worker))
            situation = replace(
                situation,
                queue_length=max(situation.queue_length - 1, 0),
                accounts=charge(job, situation.accounts),
            )
    return tuple(found)


def _preference(
    worker: Worker, situation: Situation, order: Sequence[Tier]
) -> tuple[int, float, str]:
    price = situation.prices.get((worker.provider, worker.gpu_class), float("inf"))
    return order.index(worker.tier), price, worker.worker_id
