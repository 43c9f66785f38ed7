"""What a job will take, from receipts of past jobs and from what runs now."""

from __future__ import annotations

from typing import Any

import pytest

from musetalk_pipeline.receipts.receipt import NO_PRICES, Prices
from serve_app.estimates.estimator import Ahead, Estimator
from serve_app.estimates.forecast import JobLength, PoolRunners, Runners, rates_of
from serve_app.estimates.past_jobs import REMEMBERED, PastJobs, past_job
from serve_app.estimates.speeds import Line, line_through, speeds_of

HD, SMALL = (1920, 1080), (320, 240)
PREPARE_S, DRAW_S, COMPOSE_S, AROUND_S = 0.02, 0.1, 0.01, 2.0


def metrics(
    frames: int,
    *,
    size: tuple[int, int] | None = HD,
    wall_s: float | None = None,
    draw_s: float = DRAW_S,
    pool: str = "cpu",
    cached: int = 0,
) -> dict[str, Any]:
    """Return the metrics of a job for which the rule of forecasts is exact, with one of each."""
    made = 0 if cached else 4
    stage_s = {
        "download": 0.5, "validation": 0.5, "stitch": 0.5, "upload": 0.5,
        "prepare": PREPARE_S * frames * (made > 0), "inference": draw_s * frames,
        "compose": COMPOSE_S * frames,
    }  # fmt: skip
    exact_s = AROUND_S + 50 * (PREPARE_S + draw_s + COMPOSE_S) + (frames - 50) * draw_s
    shown = {} if size is None else {"width": size[0], "height": size[1]}
    receipt = {
        "frames": frames,
        "wall_s": exact_s if wall_s is None else wall_s,
        "stage_s": stage_s,
        "pools": [
            {"pool": pool, "frames": frames, "work_s": draw_s * frames, "idle_s": frames / 100,
             "lost_s": 0.0, "usd": None}
        ],
        "avatar_blocks": {"made": made, "cached": cached},
    }  # fmt: skip
    return {"receipt": receipt, **shown}


def estimator(
    *jobs: dict[str, Any],
    runners: Runners = Runners((PoolRunners("cpu", 1, 4.0),), 1, 1),  # noqa: B008
    prices: Prices = NO_PRICES,
    ahead: Ahead = Ahead(),  # noqa: B008
) -> Estimator:
    made = Estimator(lambda: runners, lambda: prices, lambda unfinished: ahead)
    for job in jobs:
        made.past.add(job)
    return made


def length(frames: int, size: tuple[int, int] = HD) -> JobLength:
    return JobLength(frames, 50, size[0] * size[1])


def test_before_the_first_job_the_configured_speed_counts() -> None:
    made = estimator().estimate(length(200), unfinished=0)
    assert (made.source, made.jobs, made.usd) == ("configuration", 0, None)
    assert made.seconds == pytest.approx(200 / 4.0)


def test_a_job_like_past_ones_takes_as_long_as_they_did() -> None:
    made = estimator(*(metrics(frames) for frames in (100, 500, 1000))).estimate(length(700), 0)
    assert (made.source, made.jobs) == ("receipts", 3)
    exact_s = AROUND_S + 50 * (PREPARE_S + DRAW_S + COMPOSE_S) + 650 * DRAW_S
    assert made.seconds == pytest.approx(exact_s)


def test_what_the_rule_leaves_out_is_learnt_from_what_jobs_took() -> None:
    """Stages that share processors take longer together than the slowest of them alone."""
    plain = metrics(500)
    slow = metrics(500, wall_s=2 * plain["receipt"]["wall_s"])
    one, two = (estimator(*[job] * 3).estimate(length(500), 0).seconds for job in (plain, slow))
    assert two == pytest.approx(2 * one)


def test_one_odd_job_changes_nothing() -> None:
    usual = [metrics(500) for _ in range(5)]
    odd = metrics(500, wall_s=9999.0, draw_s=5.0)
    assert (
        estimator(*usual, odd).estimate(length(500), 0).seconds
        == estimator(*usual).estimate(length(500), 0).seconds
    )


def test_more_replicas_make_the_drawing_shorter_until_another_stage_is_slower() -> None:
    speeds = speeds_of([job for job in (past_job(metrics(500)),) if job])
    seconds = [
        rates_of(speeds, Runners((PoolRunners("cpu", running, 1.0),), 1, 1)).slowest_s
        for running in (1, 2, 100)
    ]
    assert seconds == pytest.approx([DRAW_S, DRAW_S / 2, PREPARE_S])


def test_a_pool_that_has_drawn_nothing_yet_counts_with_what_the_scheduler_assumes() -> None:
    speeds = speeds_of([job for job in (past_job(metrics(500)),) if job])
    both = (PoolRunners("cpu", 1, 1.0), PoolRunners("new", 1, 30.0))
    rates = rates_of(speeds, Runners(both, 8, 8))
    assert rates.drawing_s == pytest.approx(1 / (10 + 30))
    assert rates.shares == pytest.approx({"cpu": 0.25, "new": 0.75})


def test_pools_that_start_for_work_count_as_one_replica_each() -> None:
    asleep = (PoolRunners("cpu", 0, 4.0),)
    assert rates_of(speeds_of([]), Runners(asleep, 1, 1)).drawing_s == pytest.approx(0.25)


def test_jobs_with_pictures_of_a_similar_size_count_if_there_are_enough() -> None:
    small = [metrics(500, size=SMALL, draw_s=0.01) for _ in range(5)]
    large = [metrics(500, size=HD) for _ in range(3)]
    past = estimator(*small, *large).past
    assert {job.pixels for job in past.like(1920 * 1080)} == {1920 * 1080}
    assert len(past.like(1280 * 1024)) == 3
    assert len(past.like(8 * 1920 * 1080)) == 8  # none is similar, so all count


def test_loaded_blocks_do_not_make_preparation_look_cheap() -> None:
    jobs = [past_job(metrics(500)), past_job(metrics(500, cached=4))]
    assert speeds_of([job for job in jobs if job]).prepare_s == pytest.approx(PREPARE_S)


def test_the_price_is_that_of_paid_seconds_with_the_prices_of_now() -> None:
    prices = Prices({"cpu": 3600.0}, {"compose": 36.0})
    made = estimator(*[metrics(500)] * 3, prices=prices).estimate(length(500), 0)
    paid_s, composing_s = 500 * (DRAW_S + 0.01), 500 * COMPOSE_S
    assert made.usd == pytest.approx(paid_s * 1.0 + composing_s * 0.01)


def test_the_work_of_other_jobs_is_waited_for() -> None:
    """Of jobs that are open their frames count, and of the others as many as jobs usually have."""
    ahead = Ahead(frames=100.0, jobs=2)
    made = estimator(*[metrics(500)] * 3, ahead=ahead).estimate(length(50), unfinished=3)
    assert made.queue_s == pytest.approx((100 + 2 * 500) * DRAW_S)
    assert estimator().estimate(length(50), 0).queue_s == 0.0


def test_what_is_left_after_the_opening_does_not_contain_it() -> None:
    known = estimator(*[metrics(500)] * 3)
    whole = known.estimate(length(500), 0).seconds
    assert known.after_opening_s(length(500)) == pytest.approx(whole - 1.0)
    assert estimator().after_opening_s(length(500)) is None


@pytest.mark.parametrize(
    "broken",
    [
        {}, {"receipt": None}, {"receipt": {"frames": 5}}, {"receipt": "x"},
        {"avatar_id": "a", "stage_times": {}},
        {"receipt": metrics(10)["receipt"] | {"frames": 0}},
        {"receipt": metrics(10)["receipt"] | {"wall_s": None}},
        {"receipt": metrics(10)["receipt"] | {"stage_s": [1]}},
    ],
)  # fmt: skip
def test_a_job_without_a_receipt_teaches_nothing(broken: dict[str, Any]) -> None:
    assert past_job(broken) is None


def test_only_the_newest_jobs_are_remembered() -> None:
    past = PastJobs()
    past.add(metrics(7777))
    past.extend_back(metrics(frames) for frames in range(1, 3 * REMEMBERED))
    frames = [job.frames for job in past.like(HD[0] * HD[1])]
    assert (len(frames), frames[-1], frames[-2], frames[0]) == (REMEMBERED, 7777, 1, REMEMBERED - 1)


def test_a_line_is_drawn_through_most_points() -> None:
    exact = [(frames, 3.0 + 0.5 * frames) for frames in (10, 20, 30, 40)]
    found = line_through([*exact, (25, 900.0)])
    assert (found.at_zero, found.per_frame) == pytest.approx((3.0, 0.5))
    assert line_through([(10, 4.0), (10, 6.0)]) == Line(5.0, 0.0)
    assert line_through([]) == Line()
