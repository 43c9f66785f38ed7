"""How far a job is: phases in order, a fraction that moves with frames, the time that is left."""

from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from musetalk_pipeline.artifacts import Piece
from musetalk_pipeline.cost import Measured, StageCost
from musetalk_pipeline.job_media import Digests
from musetalk_pipeline.plan import plan_frames
from serve_app.contract.outcomes import Phase, Progress
from serve_app.graph.progress import ProgressMeter

PLAN = plan_frames(n_source=100, n_output=150, fps=Fraction(25))


@dataclass
class Watch:
    """Time that passes when told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def meter(told: list[Progress], watch: Watch) -> ProgressMeter:
    meter = ProgressMeter(told.append, watch)
    meter.report(Phase.DOWNLOADING)
    meter.fetched(fetched(1.0))
    meter.report(Phase.VALIDATING)
    meter.opened(opened())
    return meter


def fetched(seconds: float) -> Measured[Digests]:
    return Measured(Digests("a", "b"), (StageCost("download", seconds, 0),))


def opened(n_output: int = 150) -> Any:
    plan = plan_frames(n_source=100, n_output=n_output, fps=Fraction(25))
    job = SimpleNamespace(plan=plan)
    return Measured(SimpleNamespace(job=job), (StageCost("validation", 0.1, 0),))


def composed(*inputs: StageCost) -> Measured[Piece]:
    piece = Piece(PLAN.segments[0], np.zeros(1, np.uint8), 1)
    return Measured(piece, (*inputs, StageCost("compose", 0.5, 50)))


def test_the_fraction_moves_with_prepared_drawn_and_encoded_frames(meter, told):
    """Mend 2.11: each kind of progress is seen by itself."""
    assert len(PLAN.segments) == 3
    for segment in PLAN.segments:
        for step in (
            lambda s=segment: meter.prepared(s.block),
            lambda s=segment: meter.drawn(s),
            lambda s=segment: meter.composed(s, composed()),
        ):
            before = told[-1].fraction
            step()
            is_again = segment.index == 2 and told[-1].fraction == before  # the block is known
            assert told[-1].fraction > before or is_again
    meter.uploading()
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 0.95
    assert told[-1].frames_done == told[-1].frames_total == 150


def test_encoding_begins_when_every_frame_is_drawn(meter, told):
    """Mend 1.17: as long as a frame is to be drawn the phase is `inferring`."""
    first, second, third = PLAN.segments
    meter.composed(first, composed())
    meter.drawn(second)
    assert (told[-1].phase, told[-1].frames_done) == (Phase.INFERRING, 100)
    meter.drawn(third)
    assert (told[-1].phase, told[-1].frames_done) == (Phase.ENCODING, 150)
    meter.composed(second, composed())
    assert told[-1].phase is Phase.ENCODING


def test_however_the_news_come_each_phase_is_told_in_order(meter, told):
    """Mend 0: results that nobody saw being made are known by what was made of them."""
    for segment in PLAN.segments:
        meter.composed(segment, composed())
    meter.uploading()
    phases = list(dict.fromkeys(progress.phase for progress in told))
    assert phases == [
        Phase.DOWNLOADING, Phase.VALIDATING, Phase.INFERRING, Phase.ENCODING, Phase.UPLOADING,
    ]  # fmt: skip


def test_a_segment_that_is_made_anew_is_not_drawn(meter, told):
    for segment in PLAN.segments:
        meter.drawn(segment)
    fraction = told[-1].fraction
    meter.lost(PLAN.segments[1], {"ada": 2.5})
    assert (told[-1].phase, told[-1].frames_done) == (Phase.INFERRING, 100)
    assert told[-1].fraction == fraction  # it never goes back
    meter.drawn(PLAN.segments[1])
    assert told[-1].phase is Phase.ENCODING
    work = meter.facts().work
    assert (work.retried_segments, work.retried_frames) == (1, 50)
    assert [(pool.pool, pool.lost_s) for pool in work.pools] == [("ada", 2.5)]


def test_the_time_left_follows_from_the_rate_so_far(meter, told, watch):
    """Mend 2.11: nothing is said before there is a rate; waiting for a place is no work."""
    assert told[-1].eta_s is None
    watch.now += 30.0
    meter.composed(PLAN.segments[0], composed())
    assert told[-1].eta_s == 60.0  # a third of the frames is encoded
    for segment in PLAN.segments:
        meter.drawn(segment)
    assert told[-1].eta_s == 60.0  # what is drawn ahead brings the end no nearer


def test_before_a_frame_is_encoded_and_after_the_last_one_the_fraction_says_what_is_left(
    meter, told, watch
):
    watch.now += 30.0
    meter.drawn(PLAN.segments[0])
    done, left = told[-1].fraction - 0.05, 1 - told[-1].fraction
    assert told[-1].eta_s == pytest.approx(30.0 * left / done, abs=0.1)
    for segment in PLAN.segments:
        meter.composed(segment, composed())
    meter.uploading()
    assert told[-1].eta_s == pytest.approx(30.0 * 0.05 / 0.9, abs=0.1)


def test_waiting_for_a_place_is_left_out_of_the_jobs_time(meter, watch):
    watch.now += 12.0
    meter.waited(10.0)
    facts = meter.facts()
    assert facts.elapsed_s == 2.0
    assert facts.work.waiting_s["place"] == 10.0


def test_a_call_counts_once_however_many_segments_use_its_result(meter):
    """The block's two calls reach the driver with each of its segments."""
    block = (StageCost("prepare", 2.0, 50), StageCost("encode", 1.0, 50, 300.0))
    for segment in PLAN.segments[:2]:
        meter.composed(segment, composed(*block, StageCost("generate", 4.0, 50, 200.0)))
    work = meter.facts().work
    assert work.stage_seconds == {
        "download": 1.0, "validation": 0.1, "prepare": 2.0, "inference": 9.0, "compose": 1.0,
    }  # fmt: skip
    assert work.peak_memory_mib == 300.0


def test_calls_that_took_equally_long_count_each(meter):
    for segment in PLAN.segments[:2]:
        meter.composed(segment, composed(StageCost("listen", 0.25, 50)))
    assert meter.facts().work.stage_seconds["listen"] == 0.5


def test_past_jobs_say_the_time_left_until_the_job_has_a_rate_of_its_own(told, watch):
    """The weight moves to the rate so far as the job goes on; without past jobs, see above."""
    meter = ProgressMeter(told.append, watch, expected_s=lambda job: 200.0)
    assert told == []
    meter.report(Phase.DOWNLOADING)
    assert told[-1].eta_s is None
    meter.opened(opened())
    assert told[-1].eta_s == 200.0
    watch.now += 20.0
    meter.prepared(0)
    assert told[-1].eta_s == 180.0
    meter = ProgressMeter(told.append, watch, expected_s=lambda job: 200.0)
    meter.opened(long := opened(n_output=1000))
    watch.now += 20.0
    first = long.value.job.plan.segments[0]
    meter.composed(first, composed())
    share = len(first) / 1000
    by_rate = 20.0 * (1 - share) / share
    assert told[-1].eta_s == pytest.approx(share * by_rate + (1 - share) * 180.0, abs=0.1)
    for segment in long.value.job.plan.segments[1:10]:
        meter.composed(segment, composed())
    assert told[-1].eta_s == 100.0  # half of the frames took 20 s, and past jobs took 180 s more
