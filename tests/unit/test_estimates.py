"""What a job will take, from receipts of past jobs and from what runs now."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from musetalk_pipeline.receipts.receipt import NO_PRICES, Prices
from serve_app.estimates.estimator import Ahead, Estimator
from serve_app.estimates.forecast import PoolRunners, Runners, forecast, frame_s
from serve_app.estimates.job_length import JobLength, whole_job
from serve_app.estimates.past_jobs import REMEMBERED, PastJobs, past_job
from serve_app.estimates.speeds import Line, line_through, speeds_of

HD, SMALL = (1920, 1080), (320, 240)
PREPARE_S, DRAW_S, COMPOSE_S, AROUND_S = 0.02, 0.1, 0.01, 2.0
ENCODE_S, LOAD_S, FOLLOW_S = 0.03, 0.001, 0.04  # of jobs whose receipts count frames by stage


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
    made = 0 if cached else -(-frames // 50)
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


def exact_s(length: JobLength, opening_s: float = 0.5) -> float:
    """Return what a job takes by the rule of forecasts, with one replica and one thread of each."""
    prepare_s, compose_s = PREPARE_S * length.prepared, COMPOSE_S * length.frames
    engine_s = ENCODE_S * length.prepared + DRAW_S * length.drawn
    first = length.first_frames / length.frames
    first_s = first * (prepare_s + engine_s + LOAD_S * length.kept + compose_s)
    rest_s = (1 - first) * max(prepare_s, engine_s, compose_s)
    return 1.5 + opening_s + FOLLOW_S * length.followed + first_s + rest_s


def counted(length: JobLength, opening_s: float = 0.5) -> dict[str, Any]:
    """Return the metrics of a job whose receipt counts frames by stage, as they are today."""
    encode_s, draw_s = ENCODE_S * length.prepared, DRAW_S * length.drawn
    blocks = -(-(length.prepared + length.kept) // length.first_frames)
    frames = {
        "validation": length.followed, "prepare": length.prepared, "encode": length.prepared,
        "load": length.kept, "listen": length.to_draw, "generate": length.to_draw,
        "compose": length.frames,
    }  # fmt: skip
    stage_s = {
        "download": 0.5, "stitch": 0.5, "upload": 0.5,
        "validation": opening_s + FOLLOW_S * length.followed,
        "prepare": PREPARE_S * length.prepared, "load": LOAD_S * length.kept,
        "inference": encode_s + draw_s, "compose": COMPOSE_S * length.frames,
    }  # fmt: skip
    receipt = {
        "frames": length.to_draw,
        "stage_frames": {name: count for name, count in frames.items() if count},
        "faces": length.drawn,
        "wall_s": exact_s(length, opening_s),
        "stage_s": stage_s,
        "pools": [
            {"pool": "cpu", "frames": length.to_draw, "work_s": encode_s + draw_s, "idle_s": 0.0,
             "lost_s": 0.0, "encode_s": encode_s, "usd": None}
        ],
        "avatar_blocks": {
            "made": blocks if length.prepared else 0, "cached": 0 if length.prepared else blocks,
        },
    }  # fmt: skip
    return {"receipt": receipt, "width": HD[0], "height": HD[1]}


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
    return whole_job(frames, 50, size[0] * size[1])


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
        frame_s(speeds, Runners((PoolRunners("cpu", running, 1.0),), 1, 1))
        for running in (1, 2, 100)
    ]
    assert seconds == pytest.approx([DRAW_S, DRAW_S / 2, PREPARE_S])


def test_a_pool_that_has_drawn_nothing_yet_counts_with_what_the_scheduler_assumes() -> None:
    speeds = speeds_of([job for job in (past_job(metrics(500)),) if job])
    both = (PoolRunners("cpu", 1, 1.0), PoolRunners("new", 1, 30.0))
    runners = Runners(both, 8, 8)
    assert frame_s(speeds, runners) == pytest.approx(1 / (10 + 30))
    shares = forecast(length(500), speeds, runners).shares
    assert shares == pytest.approx({"cpu": 0.25, "new": 0.75})


def test_pools_that_start_for_work_count_as_one_replica_each() -> None:
    asleep = (PoolRunners("cpu", 0, 4.0),)
    assert frame_s(speeds_of([]), Runners(asleep, 1, 1)) == pytest.approx(0.25)


def test_jobs_with_pictures_of_a_similar_size_count_if_there_are_enough() -> None:
    small = [metrics(500, size=SMALL, draw_s=0.01) for _ in range(5)]
    large = [metrics(500, size=HD) for _ in range(3)]
    past = estimator(*small, *large).past
    assert {job.length.pixels for job in past.like(1920 * 1080)} == {1920 * 1080}
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


# Jobs that do less than a whole job, or more: 500 frames of output each.
WHOLE = whole_job(500, 50, HD[0] * HD[1])
KINDS = {
    "whole": WHOLE,
    "kept": replace(WHOLE, prepared=0, kept=500),
    "spans": replace(WHOLE, to_draw=100, drawn=100, prepared=100),
    "resting": replace(WHOLE, drawn=150),
    "repeated": replace(WHOLE, prepared=50),
    "followed": replace(WHOLE, followed=500),
}
KIND = pytest.mark.parametrize("kind", KINDS)


@KIND
def test_a_job_of_another_kind_takes_what_is_left_of_the_work(kind: str) -> None:
    """Speeds are learnt for each kind of work, and whole jobs contain most of them."""
    jobs = [counted(WHOLE), counted(replace(WHOLE, followed=80))]
    made = estimator(*jobs).estimate(KINDS[kind], 0)
    # How long a block takes to load has not been learnt yet, and is short.
    assert made.seconds == pytest.approx(exact_s(KINDS[kind]), abs=LOAD_S * 50)
    assert made.length == KINDS[kind]


@KIND
def test_past_jobs_of_all_kinds_do_not_disturb_each_other(kind: str) -> None:
    past = [counted(one) for one in KINDS.values() for _ in range(2)]
    made = estimator(*past).estimate(KINDS[kind], 0)
    assert made.seconds == pytest.approx(exact_s(KINDS[kind]))


def test_the_opening_of_a_job_with_a_kept_avatar_is_learnt_from_such_jobs() -> None:
    """The faces of its video have been searched by an earlier job."""
    past = [counted(WHOLE, opening_s=3.0), counted(KINDS["kept"], opening_s=0.2)] * 2
    for kind, opening_s in (("whole", 3.0), ("kept", 0.2)):
        made = estimator(*past).estimate(KINDS[kind], 0)
        assert made.seconds == pytest.approx(exact_s(KINDS[kind], opening_s))


def test_what_the_rule_leaves_out_is_learnt_for_each_kind_of_job() -> None:
    slow = counted(KINDS["kept"])
    slow["receipt"]["wall_s"] *= 1.2
    known = estimator(*[counted(WHOLE)] * 4, *[slow] * 3)
    whole, kept = (known.estimate(KINDS[kind], 0).seconds for kind in ("whole", "kept"))
    assert whole == pytest.approx(exact_s(WHOLE))
    assert kept == pytest.approx(1.2 * exact_s(KINDS["kept"]))


@KIND
def test_what_every_job_takes_more_is_told_apart_from_what_makes_it_slower(kind: str) -> None:
    """Calls between the stages cost a short job as much as a long one."""
    lengths = [whole_job(frames, 50, WHOLE.pixels) for frames in (50, 100, 150, 200, 300)]
    past = [counted(one) for one in (*lengths, replace(WHOLE, followed=500))]
    for each in past:
        each["receipt"]["wall_s"] = 3.0 + 2.0 * each["receipt"]["wall_s"]
    made = estimator(*past).estimate(KINDS[kind], 0)
    assert made.seconds == pytest.approx(3.0 + 2.0 * exact_s(KINDS[kind]), abs=2 * LOAD_S * 50)


def test_the_first_job_of_a_kind_counts_half() -> None:
    """One odd job of a kind must not decide alone about the next one."""
    slow = counted(KINDS["kept"])
    slow["receipt"]["wall_s"] *= 1.2
    made = estimator(*[counted(WHOLE)] * 4, slow).estimate(KINDS["kept"], 0)
    assert made.seconds == pytest.approx(1.1 * exact_s(KINDS["kept"]))


@pytest.mark.parametrize("kind", ["kept", "resting"])
def test_a_job_that_does_less_takes_no_longer_than_one_that_does_all(kind: str) -> None:
    """Jobs with a kept avatar may have waited for the job that made it."""
    slow = counted(KINDS[kind])
    slow["receipt"]["wall_s"] *= 3.0
    known = estimator(*[counted(WHOLE)] * 4, *[slow] * 3)
    assert known.estimate(KINDS[kind], 0).seconds == pytest.approx(exact_s(WHOLE))
    left = [known.after_opening_s(each) for each in (KINDS[kind], WHOLE)]
    assert left[0] == left[1] == pytest.approx(exact_s(WHOLE) - 1.0)


def test_a_kept_avatar_and_undrawn_frames_are_not_paid_for() -> None:
    prices = Prices({"cpu": 3600.0}, {"prepare": 36.0})
    known = estimator(*[counted(WHOLE)] * 3, prices=prices)
    usd = {kind: known.estimate(length, 0).usd for kind, length in KINDS.items()}
    prepared = 500 * (ENCODE_S + PREPARE_S * 0.01)
    assert usd["whole"] == pytest.approx(500 * DRAW_S + prepared)
    assert usd["kept"] == pytest.approx(500 * DRAW_S)
    assert usd["resting"] == pytest.approx(150 * DRAW_S + prepared)
    assert usd["spans"] == pytest.approx((500 * DRAW_S + prepared) / 5)


@KIND
def test_what_is_left_after_the_opening_is_that_of_the_kind_of_job(kind: str) -> None:
    known = estimator(*(counted(one) for one in KINDS.values()))
    opening_s = 0.5 + 0.5 + FOLLOW_S * KINDS[kind].followed  # and the download
    left = known.after_opening_s(KINDS[kind])
    assert left == pytest.approx(exact_s(KINDS[kind]) - opening_s)


def test_a_receipt_says_what_a_job_has_done() -> None:
    for length in KINDS.values():
        job = past_job(counted(length))
        assert job is not None and job.length == length


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
    frames = [job.length.frames for job in past.like(HD[0] * HD[1])]
    assert (len(frames), frames[-1], frames[-2], frames[0]) == (REMEMBERED, 7777, 1, REMEMBERED - 1)


def test_a_line_is_drawn_through_most_points() -> None:
    exact = [(frames, 3.0 + 0.5 * frames) for frames in (10, 20, 30, 40)]
    found = line_through([*exact, (25, 900.0)])
    assert (found.at_zero, found.per_frame) == pytest.approx((3.0, 0.5))
    assert line_through([(10, 4.0), (10, 6.0)]) == Line(5.0, 0.0)
    assert line_through([]) == Line()
