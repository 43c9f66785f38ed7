"""The outbox and the journal by themselves, and all parts of a worker in a bad network."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import random
from pathlib import Path

import pytest

from orchestrator.client import ClaimedJob, FinalReport
from orchestrator.errors import CallRejected, ServiceUnavailable
from serve_app.contract.outcomes import Outcome, Phase, Progress
from serve_app.contract.requests import JobRequest
from serve_app.fleet.claim_journal import ClaimJournal, HeldJob
from serve_app.fleet.outbox import Outbox
from tests.contract.fake_orchestrator import (
    PASS,
    FakeOrchestrator,
    answer,
    close,
    cut_off,
    lost_answer,
)
from tests.contract.worker_rig import (
    DONE,
    FAILED,
    WORKER_ID,
    Desk,
    ProgressCallback,
    Rig,
    report,
    worker_rig,
)
from tests.waiting import until_async

# The outbox and the journal by themselves --------------------------------------------------------


async def test_reports_are_sent_oldest_first_and_one_that_fails_does_not_block_the_rest(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path)
    for number in range(4):
        await outbox.put(report(number))
    tried: list[str] = []

    async def send(each: FinalReport) -> None:
        tried.append(each.job_id)
        if each.job_id == "job-1":
            raise ServiceUnavailable("poisoned", status_code=500)
        if each.job_id == "job-2":
            raise CallRejected("wrong key", status_code=401)

    assert not await outbox.deliver_round(send)
    assert tried == ["job-0", "job-1", "job-2", "job-3"]
    assert outbox.pending() == 2


async def test_a_round_ends_when_nobody_answers(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for number in range(4):
        await outbox.put(report(number))
    tried: list[str] = []

    async def send(each: FinalReport) -> None:
        tried.append(each.job_id)
        raise ServiceUnavailable("no answer")

    assert not await outbox.deliver_round(send)
    assert tried == ["job-0"]
    assert outbox.pending() == 4


async def test_a_crash_of_the_sender_does_not_end_the_delivery(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, first_pause_s=0.01)
    failures = iter([KeyError("bug"), None])

    async def send(each: FinalReport) -> None:
        failure = next(failures)
        if failure is not None:
            raise failure

    name = await outbox.put(report(1))
    delivery = asyncio.create_task(outbox.deliver_forever(send))
    assert await outbox.wait_settled(name, 10.0)
    delivery.cancel()


async def test_damaged_reports_are_set_aside(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    (tmp_path / "0.json").write_text('{"job_id": ')
    (tmp_path / "1.json").write_text('{"job_id": "x"}')
    (tmp_path / "2.json.part").write_text("half a rep")
    await outbox.put(report(1))
    sent: list[FinalReport] = []

    async def send(each: FinalReport) -> None:
        sent.append(each)

    assert await outbox.deliver_round(send)
    assert sent == [report(1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0.json.unreadable",
        "1.json.unreadable",
        "2.json.part",
    ]


async def test_a_disk_that_takes_nothing_costs_no_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "outbox"
    outbox = Outbox(folder)
    folder.rmdir()
    folder.write_text("not a folder any more")
    name = await outbox.put(report(1))
    assert "kept in memory" in caplog.text
    assert outbox.pending() == 1
    sent: list[FinalReport] = []

    async def send(each: FinalReport) -> None:
        sent.append(each)

    folder.unlink()
    folder.mkdir()
    assert await outbox.deliver_round(send)
    assert sent == [report(1)]
    assert await outbox.wait_settled(name, 1.0)


async def test_a_report_that_comes_while_others_are_loaded_waits_for_the_next_round(
    tmp_path: Path,
) -> None:
    """Mend 3.9: a thread went through what `put` was writing to."""

    def disk_full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    outbox, sent = Outbox(tmp_path, write=disk_full), list[FinalReport]()

    async def send(each: FinalReport) -> None:
        sent.append(each)

    os.mkfifo(tmp_path / "slow.json")  # the load waits here until somebody writes
    await outbox.put(report(1))
    sending = asyncio.create_task(outbox.deliver_round(send))
    pipe = await asyncio.to_thread((tmp_path / "slow.json").open, "w")  # it has begun to read
    await outbox.put(report(2))
    pipe.close()
    await sending
    assert sent == [report(1)]
    await outbox.deliver_round(send)
    assert sent == [report(1), report(2)]


async def test_the_name_of_a_report_is_on_the_disk_before_it_is_relied_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mend 3.9: else a crash of the machine may lose a file whose bytes are there."""
    seen: list[tuple[Path, list[str]]] = []

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            seen.append((path, [each.name for each in path.iterdir()]))

    monkeypatch.setattr(os, "fsync", synced)
    name = await Outbox(tmp_path).put(report(1))
    assert seen == [(tmp_path, [name])]


def test_only_one_process_owns_an_identity(tmp_path: Path) -> None:
    first, second = (ClaimJournal(tmp_path, "worker/../1") for _ in range(2))
    other = ClaimJournal(tmp_path, "worker-2")
    assert first.acquire() and first.acquire()
    assert not second.acquire()
    assert other.acquire()
    first.release()
    assert second.acquire()
    for journal in (first, second, other):
        journal.release()


async def test_a_damaged_journal_is_no_reason_to_stop(
    fake: FakeOrchestrator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = ClaimJournal(tmp_path / "claims", WORKER_ID)
    await journal.start(HeldJob(ClaimedJob("job-0", {})))
    (held,) = (tmp_path / "claims").glob("*.held")
    held.write_text("{")
    fake.add_job("job-1")
    async with worker_rig(fake, tmp_path) as rig:
        assert await rig.worker.claim_and_run()
    assert fake.jobs["job-1"].status == "succeeded"
    assert "claim journal unreadable" in caplog.text


async def test_no_secret_reaches_the_logs(
    fake: FakeOrchestrator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.add_job("job-1")
    fake.plan("claim", answer(503), answer(200, b"junk"))
    fake.plan("progress", answer(422))
    fake.plan("final", answer(500), close())
    async with worker_rig(fake, tmp_path, is_beating=True) as rig:
        assert await rig.worker.claim_and_run()
    extras = " ".join(str(vars(record)) for record in caplog.records)
    for secret in (fake.api_key, "video-secret", "audio-secret"):
        assert secret not in caplog.text
        assert secret not in extras
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


# Everything at once ------------------------------------------------------------------------------


@pytest.mark.slow
async def test_every_job_ends_once_whatever_the_network_does(
    fake: FakeOrchestrator, tmp_path: Path
) -> None:
    """Two workers, 30 jobs, a third of all calls spoilt at random; jobs fail, crash, repeat."""
    chance = random.Random(1)
    faults = [answer(500), answer(429), close(), cut_off(), lost_answer(), answer(200, b"junk")]
    for kind in ("claim", "progress", "final", "heartbeat"):
        # Junk with 200 counts as an accepted report: by contract the status alone decides.
        usable = [f for f in faults if not (kind == "final" and f.status == 200 and not f.is_cut)]
        for _ in range(300):
            spoilt = chance.random() < 0.3
            fake.plan(kind, chance.choice(usable) if spoilt else PASS)

    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        on_progress(Progress(Phase.INFERRING, 0.5, 5, 10))
        await asyncio.sleep(0.002)
        number = int(request.musetalk_job_id.removeprefix("job-"))
        if number % 7 == 0:
            raise KeyError("a bug")
        return FAILED if number % 5 == 0 else DONE

    for number in range(1, 31):
        fake.add_job(f"job-{number}")
    async with (
        worker_rig(fake, tmp_path, desk=Desk(job), is_beating=True) as first,
        worker_rig(
            fake, tmp_path, desk=Desk(job), is_beating=True, worker_id="machine-8"
        ) as second,
    ):

        def worker_id(rig: Rig) -> str:
            return WORKER_ID if rig is first else "machine-8"

        async def work(rig: Rig) -> None:
            async def is_over() -> bool:
                await rig.worker.claim_and_run()
                # No claim of this worker is on its way now.
                ran = {request.musetalk_job_id for request in rig.desk.ran}
                mine = [job.id for job in fake.jobs.values() if job.worker_id == worker_id(rig)]
                for job_id in mine:  # if the answer to its claim was lost: the lease's business
                    if job_id not in ran and not fake.is_queued(job_id):
                        fake.hand_out_again(job_id)
                return all(job.status not in ("queued", "running") for job in fake.jobs.values())

            await until_async(is_over, "the jobs have not ended", 120.0)

        await asyncio.gather(work(first), work(second))
        await first.until(lambda: first.outbox.pending() == 0)
    for number in range(1, 31):
        job_seen = fake.jobs[f"job-{number}"]
        is_bad = number % 5 == 0 or number % 7 == 0
        assert job_seen.status == ("failed" if is_bad else "succeeded"), number
        assert len({json.dumps(body) for body in job_seen.accepted}) == 1, number
    assert fake.violations == []
