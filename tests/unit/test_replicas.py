"""The counts of replicas are fresh, and outlive a controller that is away for a while."""

import asyncio
from collections.abc import Awaitable, Callable

from serve_app.graph.replicas import NO_REPLICAS, ReplicaCounts, ReplicaWatch, WatchTimes
from tests.threads import threads_taken

FAST = WatchTimes(period_s=0.001, answer_s=5.0, keep_s=60.0)


def running(**replicas: int) -> ReplicaCounts:
    return ReplicaCounts(replicas, {}, dict(replicas), {})


def asking(answers: list[ReplicaCounts | Exception]) -> Callable[[], Awaitable[ReplicaCounts]]:
    """Return a controller that gives these answers one after the other, and the last one again."""

    async def ask() -> ReplicaCounts:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


async def test_counts_are_kept_as_long_as_they_are_fresh_enough():
    watch = ReplicaWatch(asking([running(A=1), running(A=2)]))
    assert watch.latest() == NO_REPLICAS
    assert await watch.counts(60.0) == running(A=1)
    assert await watch.counts(60.0) == running(A=1)
    assert await watch.counts(0.0) == running(A=2)
    assert watch.latest() == running(A=2)


async def test_a_controller_that_hangs_is_asked_once_and_the_last_counts_stay():
    answer, asked = asyncio.Event(), 0

    async def ask() -> ReplicaCounts:
        nonlocal asked
        asked += 1
        if asked == 2:
            await answer.wait()
        return running(A=asked)

    watch = ReplicaWatch(ask, times=WatchTimes(answer_s=0.05))
    await watch.counts(0.0)
    for _ in range(5):
        assert await watch.counts(0.0) == running(A=1)
    assert asked == 2
    answer.set()
    async with asyncio.timeout(30):
        while await watch.counts(0.0) == running(A=1):
            await asyncio.sleep(0)


async def test_a_question_whose_answer_is_lost_is_put_again():
    asked = 0

    async def ask() -> ReplicaCounts:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return running(A=1)

    watch = ReplicaWatch(ask, times=WatchTimes(answer_s=0.0, keep_s=0.01))
    async with asyncio.timeout(30):
        while await watch.counts(0.0) == NO_REPLICAS:
            await asyncio.sleep(0)
    assert asked >= 2


async def test_a_controller_that_is_away_leaves_the_last_counts():
    watch = ReplicaWatch(asking([running(A=1), RuntimeError("no controller")]))
    await watch.counts(0.0)
    assert await watch.counts(0.0) == running(A=1)


async def test_threads_that_are_all_taken_delay_no_count():
    with threads_taken():
        assert await asyncio.wait_for(
            ReplicaWatch(asking([running(A=1)])).counts(0.0), 5.0
        ) == running(A=1)


async def test_subscribers_are_called_after_each_change_and_only_then():
    answers: list[ReplicaCounts | Exception] = [
        running(A=1), running(A=1), running(A=2), running(A=2), running(A=3)
    ]  # fmt: skip
    watch = ReplicaWatch(asking(answers), times=FAST)
    seen: list[ReplicaCounts] = []
    done = asyncio.Event()

    def note(counts: ReplicaCounts) -> None:
        seen.append(counts)
        if counts == running(A=3):
            done.set()

    end = watch.subscribe(note)
    await asyncio.wait_for(done.wait(), 10)
    end()
    assert seen == [running(A=1), running(A=2), running(A=3)]


async def test_counts_that_became_too_old_are_a_change_to_none():
    watch = ReplicaWatch(
        asking([running(A=1), RuntimeError("away")]),
        times=WatchTimes(period_s=0.001, keep_s=0.05),
    )
    gone = asyncio.Event()
    seen: list[ReplicaCounts] = []

    def note(counts: ReplicaCounts) -> None:
        seen.append(counts)
        if counts == NO_REPLICAS and seen[0] != NO_REPLICAS:
            gone.set()

    end = watch.subscribe(note)
    await asyncio.wait_for(gone.wait(), 10)
    end()
    assert seen == [running(A=1), NO_REPLICAS]


async def test_a_subscriber_that_fails_takes_nothing_from_the_others():
    watch = ReplicaWatch(asking([running(A=1)]), times=FAST)
    told = asyncio.Event()

    def fails(counts: ReplicaCounts) -> None:
        raise RuntimeError("a defect")

    ends = [watch.subscribe(fails), watch.subscribe(lambda counts: told.set())]
    await asyncio.wait_for(told.wait(), 10)
    for end in ends:
        end()


async def test_without_subscribers_the_controller_is_left_alone():
    asked = 0

    async def ask() -> ReplicaCounts:
        nonlocal asked
        asked += 1
        return running(A=1)

    watch = ReplicaWatch(ask, times=WatchTimes(period_s=0.0))
    first = asyncio.Event()
    end = watch.subscribe(lambda counts: first.set())
    await asyncio.wait_for(first.wait(), 10)
    end()
    await asyncio.sleep(0)
    before = asked
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked == before
