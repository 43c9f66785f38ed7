"""What the calls of stages cost travels next to their values."""

from __future__ import annotations

import pickle

from musetalk_pipeline.cost import CostSum, Measured, StageCost, measure


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
