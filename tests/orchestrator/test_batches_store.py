"""Batches in the store, on both databases."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.store import batches
from orchestrator.store.batch_values import NewBatch
from orchestrator.store.states import JobState
from orchestrator.store.store import NOTICE_WITHIN_S
from orchestrator.store.tables import jobs
from tests.orchestrator.databases import Bench, new_job

OURS = "a client", "content"


def test_a_batch_lists_its_jobs_in_order_until_one_is_forgotten(bench: Bench) -> None:
    for name in "cab":
        bench.store.submit(new_job(name))
    database = bench.database
    with database.write() as tx:
        new = NewBatch("one", "a client", "content", "https://h.example", {"n": 1}, "key")
        entered, is_new = batches.submit(tx, new, 3, lambda: ["c", "a", "b"])
        assert is_new and batches.submit(tx, replace(new, id="x"), 3, list) == (entered, False)
        assert batches.count_waiting(tx) == 3
        found = batches.get(tx, "one")
        assert found is not None and [job.id for job in found.jobs] == ["c", "a", "b"]
        assert (found.status, found.progress, found.metadata) == ("queued", 0.0, {"n": 1})
        assert batches.at_end(tx, 10) == [] and batches.get(tx, "two") is None
    for name in "cab":
        bench.store.cancel(name, None)
    with database.write() as tx:
        [ended] = batches.at_end(tx, 10)
        assert (ended.status, ended.progress) == ("cancelled", 1.0)
        assert ended.counts["cancelled"] == 3 and ended.ended_at is not None
        batches.forget(tx, too_old=0.0)
        assert batches.at_end(tx, 10) == [ended]  # its webhook is still due
        batches.mark_ended(tx, "one")
        assert batches.at_end(tx, 10) == []
        tx.execute(jobs.delete().where(jobs.c.id == "b"))
        batches.forget(tx, too_old=0.0)
        assert batches.get(tx, "one") is None


def test_the_webhook_of_a_batch_that_took_long_is_due_when_it_ends(bench: Bench) -> None:
    bench.store.submit(new_job("a"))
    with bench.database.write() as tx:
        new = NewBatch("long", *OURS, "https://h.example")
        batches.submit(tx, new, 1, lambda: ["a"])
    bench.age(NOTICE_WITHIN_S + 1)
    bench.store.cancel("a")
    bench.store.forget()
    with bench.database.write() as tx:
        assert [batch.id for batch in batches.at_end(tx, 10)] == ["long"]
    bench.age(NOTICE_WITHIN_S + 1)
    bench.store.forget()  # nobody has sent it for a day
    with bench.database.write() as tx:
        assert batches.at_end(tx, 10) == []


def test_the_end_of_a_batch_without_a_webhook_is_noticed_by_itself(bench: Bench) -> None:
    bench.store.submit(new_job("a"))
    with bench.database.write() as tx:
        for new in (NewBatch("quiet", *OURS), NewBatch("told", *OURS, "https://h.example")):
            batches.submit(tx, new, 1, lambda: ["a"])
        batches.forget(tx, too_old=0.0)
        open_jobs = jobs.select().where(batches.IS_IN_OPEN_BATCH)
        assert [row["id"] for row in tx.execute(open_jobs).mappings()] == ["a"]
        tx.execute(jobs.update().values(state=JobState.CANCELLED, ended_at=tx.now))
        batches.forget(tx, too_old=0.0)
        assert [batch.id for batch in batches.at_end(tx, 10)] == ["told"]
        batches.forget(tx, too_old=tx.now + 1)  # its webhook could not be queued for too long
        assert batches.at_end(tx, 10) == []
        assert tx.execute(open_jobs).mappings().all() == []
