"""The arithmetic of receipts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_pipeline.cost import StageCost
from musetalk_pipeline.receipts.cost_sum import CostSum
from musetalk_pipeline.receipts.receipt import (
    NO_PRICES,
    Prices,
    Receipt,
    receipt_json,
    receipt_line,
    receipt_of,
)

CLASSES = {"ada": "RTX-4090-24GB", "ampere": "RTX-3090-24GB", "turing": "RTX-2080-8GB"}
PRICES = Prices({"ada": 0.16, "ampere": 0.09, "turing": 0.02}, {"compose": 0.01})
SECONDS = st.floats(0.001, 100.0)


@dataclass(frozen=True)
class Lost:
    """One failed try at a segment."""

    pool: str
    frames: int
    seconds: float


@st.composite
def engine_costs(draw: st.DrawFn) -> list[StageCost]:
    """Calls of several engines, each a call after the other with pauses between them."""
    costs = []
    for pool in draw(st.sets(st.sampled_from(sorted(CLASSES)), min_size=1)):
        for replica in range(draw(st.integers(1, 3))):
            now, began_before = draw(SECONDS), False
            for _ in range(draw(st.integers(1, 6))):
                idle_s = draw(SECONDS)
                now += idle_s
                cost = StageCost(
                    draw(st.sampled_from(("encode", "generate"))),
                    draw(SECONDS),
                    draw(st.integers(1, 60)),
                    replica=f"{pool}-{replica}",
                    pool=pool,
                    gpu_class=CLASSES[pool],
                    began=now,
                    idle_s=idle_s if began_before else draw(st.just(0.0) | SECONDS),
                    waited_s=draw(SECONDS),
                )
                now += cost.seconds
                began_before = True
                costs.append(cost)
    return costs


LOST = st.lists(st.builds(Lost, st.sampled_from(sorted(CLASSES)), st.integers(1, 60), SECONDS))


def receipt(costs: Sequence[StageCost], lost: Sequence[Lost] = (), **named: Any) -> Receipt:
    """Return the receipt of a job with these calls and failed tries."""
    total = CostSum()
    total.add(costs)
    for one in lost:
        total.add_lost(one.frames, {one.pool: one.seconds})
    values: dict[str, Any] = {"finished_s": 10.0, "wall_s": 30.0, **named}
    return receipt_of(total.so_far(), values.pop("prices", PRICES), **values)


@given(engine_costs(), LOST)
def test_every_drawn_frame_is_counted_once_and_lost_ones_are_not(
    costs: list[StageCost], lost: list[Lost]
) -> None:
    drawn = sum(cost.frames for cost in costs if cost.stage == "generate")
    made = receipt(costs, lost)
    assert made.frames == sum(made.frames_by_class.values()) == drawn
    assert sum(pool.frames for pool in made.work.pools) == drawn
    assert made.work.retried_frames == sum(one.frames for one in lost)


@given(engine_costs(), LOST)
def test_frames_are_counted_by_stage_and_the_work_of_encoding_is_told_apart(
    costs: list[StageCost], lost: list[Lost]
) -> None:
    found = receipt_json(receipt(costs, lost))
    by_stage = {name: [c for c in costs if c.stage == name] for name in ("encode", "generate")}
    assert found["stage_frames"] == {
        name: sum(call.frames for call in calls) for name, calls in by_stage.items() if calls
    }
    encode_s = sum(pool["encode_s"] for pool in found["pools"])
    assert encode_s == pytest.approx(sum(c.seconds for c in by_stage["encode"]), abs=0.002)


def test_a_receipt_counts_the_faces_that_were_drawn() -> None:
    """In silence a frame may have none, and with `face: all` it may have several."""
    calls = [StageCost("generate", 1.0, 50, faces=faces) for faces in (0, 20, 100)]
    assert receipt_json(receipt(calls))["faces"] == 120


@given(engine_costs(), LOST)
def test_paid_seconds_are_work_idleness_and_lost_tries(
    costs: list[StageCost], lost: list[Lost]
) -> None:
    work_s = sum(cost.seconds for cost in costs)
    lost_s = sum(one.seconds for one in lost)
    first = {cost.replica: cost for cost in sorted(costs, key=lambda c: c.began, reverse=True)}
    idle_s = sum(cost.idle_s for cost in costs) - sum(cost.idle_s for cost in first.values())
    made = receipt(costs, lost)
    assert made.paid_s == pytest.approx(work_s + idle_s + lost_s)
    assert made.model_share == pytest.approx(work_s / (work_s + idle_s + lost_s))
    assert 0.0 <= made.model_share <= 1.0
    # Between its first call and the end of its last, a replica is paid for once at most.
    for pool in made.work.pools:
        assert pool.idle_s >= 0.0


@given(engine_costs(), LOST, st.randoms(use_true_random=False))
def test_neither_the_order_of_the_news_nor_their_repetition_matters(
    costs: list[StageCost], lost: list[Lost], chance: random.Random
) -> None:
    again = [*costs, *costs]
    chance.shuffle(again)
    one, other = receipt_json(receipt(costs, lost)), receipt_json(receipt(again, lost))
    for name in ("frames_by_gpu_class", "avatar_blocks", "retries"):
        assert one[name] == other[name]
    for name in ("paid_s", "model_share", "usd"):  # sums in another order differ a little
        assert one[name] == pytest.approx(other[name], abs=0.002)


@given(engine_costs(), LOST)
def test_dollars_are_paid_seconds_at_the_pools_prices(
    costs: list[StageCost], lost: list[Lost]
) -> None:
    made = receipt(costs, lost)
    by_pool = [pool.paid_s / 3600 * PRICES.pools[pool.pool or ""] for pool in made.work.pools]
    assert made.usd_by_pool == pytest.approx(tuple(by_pool))
    assert made.usd == pytest.approx(sum(by_pool))
    assert made.usd_per_finished_minute == pytest.approx(sum(by_pool) * 6)  # ten seconds long


def test_a_retried_segment_is_paid_for_twice_and_finished_once() -> None:
    call = StageCost("generate", 4.0, 50, replica="a", pool="ada", gpu_class="RTX-4090-24GB")
    alone, retried = receipt([call]), receipt([call], [Lost("ada", 50, 4.0)])
    assert (alone.paid_s, alone.model_share) == (4.0, 1.0)
    assert (retried.paid_s, retried.model_share, retried.frames) == (8.0, 0.5, 50)
    assert retried.usd == pytest.approx(2 * (alone.usd or 0.0))


def test_idleness_before_the_first_call_is_nobodys() -> None:
    first = StageCost("encode", 1.0, 50, replica="a", pool="ada", began=100.0, idle_s=3600.0)
    second = StageCost("generate", 2.0, 50, replica="a", pool="ada", began=101.5, idle_s=0.5)
    [pool] = receipt([second, first]).work.pools
    assert (pool.work_s, pool.idle_s) == (3.0, 0.5)
    # A replica of another machine has a first call of its own.
    elsewhere = replace(first, replica="b", call_id="other")
    [pool] = receipt([second, first, elsewhere]).work.pools
    assert (pool.work_s, pool.idle_s) == (4.0, 0.5)


def test_the_class_with_the_most_frames_comes_first() -> None:
    def by(pool: str, frames: int) -> StageCost:
        return StageCost("generate", 1.0, frames, pool=pool, gpu_class=CLASSES[pool])

    assert receipt([by("ampere", 50)]).gpu_class == "RTX-3090-24GB"
    assert receipt([by("ampere", 50), by("ada", 80)]).gpu_class == "RTX-4090-24GB+RTX-3090-24GB"
    tie = receipt([by("ampere", 50), by("ada", 30), by("ada", 20)])
    assert tie.gpu_class == "RTX-3090-24GB+RTX-4090-24GB"
    # A pool that only encoded has not drawn.
    assert receipt([by("ada", 10), StageCost("encode", 1.0, 50, pool="turing")]).gpu_class == (
        "RTX-4090-24GB"
    )
    assert receipt([StageCost("generate", 1.0, 50)]).gpu_class == ""


def test_without_prices_there_are_no_dollars() -> None:
    made = receipt_json(receipt([StageCost("generate", 1.0, 50)], prices=NO_PRICES))
    assert (made["usd"], made["usd_per_finished_minute"]) == (None, None)
    assert [pool["usd"] for pool in made["pools"]] == [None]


def test_a_priced_stage_without_an_engine_costs_what_its_seconds_cost() -> None:
    costs = [StageCost("generate", 36.0, 50, pool="free"), StageCost("compose", 72.0, 50)]
    made = receipt(costs, last_stages={"compose": 36.0, "upload": 9.0})
    assert made.stage_s == {"inference": 36.0, "compose": 108.0, "upload": 9.0}
    assert made.usd == pytest.approx(108.0 / 3600 * 0.01)


def test_waits_and_blocks_are_counted() -> None:
    total = CostSum()
    total.add_wait("place", 3.0)
    total.add_wait("queue", 0.5)
    total.add([StageCost("encode", 1.0, 50, waited_s=0.25), StageCost("listen", 1.0, 50)])
    total.add([StageCost("load", 0.1, 50)])
    total.add([StageCost("prepare", 1.0, 9, waited_s=2.0)])
    work = total.so_far()
    assert work.waiting_s == {"place": 3.0, "queue": 0.5, "pool": 0.25, "stages": 2}
    assert (work.blocks_made, work.blocks_cached) == (1, 1)


def test_a_line_has_the_main_numbers() -> None:
    call = StageCost("generate", 9.0, 250, pool="ada", gpu_class="RTX-4090-24GB")
    made = receipt_json(receipt([call], [Lost("ada", 50, 1.0)]))
    assert receipt_line(made) == (
        "250 frames by RTX-4090-24GB; engines occupied for 10.0 s, 90% of it at work; "
        "$0.0004, $0.0027 a finished minute; 1 try lost"
    )
    nameless = receipt([StageCost("generate", 9.0, 250)], prices=NO_PRICES)
    assert receipt_line(receipt_json(nameless)) == (
        "250 frames; engines occupied for 9.0 s, 100% of it at work"
    )
