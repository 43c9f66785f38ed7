"""What the calls of stages cost travels next to their values."""

from __future__ import annotations

import pickle
import time

import pytest

from musetalk_pipeline.cost import EngineClock, Measured, StageCost, measure
from musetalk_pipeline.receipts.cost_sum import CostSum


def test_a_value_carries_the_costs_of_its_inputs_and_then_its_own() -> None:
    block = measure("prepare", 50, lambda: "block")
    speech = measure("listen", 40, lambda: "speech")
    drawn = measure("generate", 40, lambda: "drawn", (block, speech)).on("replica-1", 812.5)
    assert drawn.value == "drawn"
    assert [cost.stage for cost in drawn.costs] == ["prepare", "listen", "generate"]
    assert (drawn.own.frames, drawn.own.replica, drawn.own.peak_memory_mib) == (
        40,
        "replica-1",
        812.5,
    )
    assert drawn.costs[:2] == (block.own, speech.own)  # as they were, their replicas included


def test_a_call_is_the_same_after_it_has_crossed_to_another_process() -> None:
    """Otherwise it would count once for every way that it takes."""
    measured = measure("encode", 50, lambda: 1)
    crossed: Measured[int] = pickle.loads(pickle.dumps(measured))
    costs = CostSum()
    costs.add(measured.costs)
    costs.add(crossed.costs)
    assert crossed == measured
    assert costs.seconds == {"inference": measured.own.seconds}


def test_the_engines_two_calls_have_one_name_in_answers() -> None:
    costs = CostSum()
    costs.add([StageCost("encode", 1.0, 50), StageCost("generate", 2.0, 50)])
    costs.add_seconds("stitch", 0.5)
    assert costs.seconds == {"inference": 3.0, "stitch": 0.5}


def test_an_engines_clock_gives_the_time_without_work_and_reports_all_work() -> None:
    now, worked = [100.0], list[float]()
    clock = EngineClock("ada", "RTX-4090-24GB", worked=worked.append, clock=lambda: now[0])

    def work(seconds: float, *, fails: bool = False) -> None:
        now[0] += seconds
        if fails:
            raise ValueError

    first = measure("encode", 50, lambda: work(2.0), clock=clock)
    now[0] += 3.0
    with pytest.raises(ValueError):
        measure("generate", 50, lambda: work(4.0, fails=True), clock=clock)
    now[0] += 0.5
    third = measure("generate", 50, lambda: work(1.0), clock=clock)
    assert (first.own.idle_s, third.own.idle_s) == (0.0, 0.5)  # a failed call is no idleness
    assert worked == [2.0, 4.0, 1.0]
    assert (third.own.pool, third.own.gpu_class) == ("ada", "RTX-4090-24GB")


def test_the_wait_of_a_call_is_not_its_work() -> None:
    asked_at = time.monotonic() - 60.0
    cost = measure("generate", 50, lambda: None, asked_at=asked_at).own
    assert cost.waited_s >= 60.0 > cost.seconds
