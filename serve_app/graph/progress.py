"""How far a job is: its phase, a fraction that never goes back, and the time that is left.

    downloading ─► validating ─► inferring ─► encoding ─► uploading
    0 … 3 %        3 … 5 %       5 … 95 %, by frames     95 %

Each frame counts three times: when it is prepared, drawn and encoded. `encoding` begins when every
frame is drawn, though most are encoded by then.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from musetalk_pipeline.artifacts import Piece
from musetalk_pipeline.cost import Measured
from musetalk_pipeline.errors import PipelineError
from musetalk_pipeline.job_media import Digests
from musetalk_pipeline.plan import FramePlan, Segment
from musetalk_pipeline.receipts.cost_sum import CostSum
from musetalk_pipeline.receipts.receipt import NO_PRICES, Prices, receipt_json, receipt_of
from serve_app.contract.outcomes import Phase, Progress
from serve_app.graph.transfers import Opened, RunFacts
from serve_app.telemetry.metrics import SEGMENTS_RETRIED

# The fraction at the end of the download, of the opening and of the segments.
FETCHED_SHARE, OPEN_SHARE, ENCODED_SHARE = 0.03, 0.05, 0.95
# The weights of the three steps in the part between (guess).
PREPARED_WEIGHT, DRAWN_WEIGHT, ENCODED_WEIGHT = 0.35, 0.45, 0.2
RATE_SHARE = 0.02  # of the job, after the opening: until so much is done, no rate is given


class ProgressMeter:
    """Turns what happened into Progress, and sums up what the stages cost."""

    def __init__(
        self,
        report: Callable[[Progress], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        expected_s: Callable[[Opened], float | None] = lambda opened: None,
    ) -> None:
        """`expected_s` returns what past jobs say about an opened one; None if there are none."""
        self._ask_past = expected_s
        self._expected_s: float | None = None
        self._callback = report
        self._clock = clock
        self._phase = Phase.QUEUED
        self._fraction = 0.0
        self._frames: _Frames | None = None
        self._costs = CostSum()
        self._started = self._opened_at = clock()

    def report(self, phase: Phase, fraction: float = 0.0) -> None:
        """Report a phase, and a fraction if it is further than the last."""
        self._phase = phase
        self._fraction = max(self._fraction, fraction)
        self._callback(self._progress())

    def ended_early(self, prices: Prices) -> None:
        """Report the receipt of a job that failed or was cancelled."""
        facts = self.facts(prices)
        spent = receipt_of(facts.work, prices, finished_s=0.0, wall_s=facts.elapsed_s)
        self._callback(replace(self._progress(), receipt=receipt_json(spent)))

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the seconds that were spent on a job that could not be fetched or opened."""
        try:
            yield
        except PipelineError as error:
            self._costs.seconds |= error.stage_seconds
            self.report(self._phase)
            raise

    def fetched(self, fetched: Measured[Digests]) -> None:
        """Count the download. The phase stays while the job waits for its place."""
        self._costs.add(fetched.costs)
        self.report(Phase.DOWNLOADING, FETCHED_SHARE)

    def waited(self, seconds: float) -> None:
        """Count seconds of waiting for a place, and leave them out of the job's time."""
        self._started += seconds
        self._costs.add_wait("place", seconds)

    def queued(self, seconds: float) -> None:
        """Count seconds that a segment was ready and waited for a pool."""
        self._costs.add_wait("queue", seconds)

    def opened(self, opened: Measured[Opened]) -> None:
        """Count the opening."""
        self._frames = _Frames(opened.value.job.plan)
        self._costs.add(opened.costs)
        self._opened_at = self._clock()
        self._expected_s = self._ask_past(opened.value)
        self.report(Phase.INFERRING, OPEN_SHARE)

    def prepared(self, block: int) -> None:
        """Count a block whose faces have been found."""
        self._known_frames.prepare(block)
        self._report_frames()

    def drawn(self, segment: Segment) -> None:
        """Count a segment whose faces have been drawn."""
        self._known_frames.draw(segment)
        self._report_frames()

    def composed(self, segment: Segment, piece: Measured[Piece]) -> None:
        """Count a segment that is encoded, and so has been prepared and drawn."""
        self._costs.add(piece.costs)
        self._known_frames.encode(segment)
        self._report_frames()

    def lost(self, segment: Segment, held_s: Mapping[str, float]) -> None:
        """Take back what was counted of a segment that has to be made again.

        `held_s`: for how long the try held a replica, by pool.
        """
        self._costs.add_lost(len(segment), held_s)
        for pool in held_s:
            SEGMENTS_RETRIED.inc(tags={"pool": pool})
        self._known_frames.lose(segment)
        self._report_frames()

    def uploading(self) -> None:
        """Report that the pieces are being joined and stored."""
        self.report(Phase.UPLOADING, ENCODED_SHARE)

    def facts(self, prices: Prices = NO_PRICES) -> RunFacts:
        """Return what the sidecar, the metrics and the receipt contain about the run so far."""
        return RunFacts(self._costs.so_far(), self._clock() - self._started, prices)

    def _progress(self) -> Progress:
        frames = self._frames
        return Progress(
            self._phase,
            self._fraction,
            0 if frames is None else frames.drawn,
            0 if frames is None else frames.total,
            {name: round(value, 3) for name, value in self._costs.seconds.items()},
            self._eta_s(),
        )

    @property
    def _known_frames(self) -> "_Frames":
        assert self._frames is not None, "no frame is made before the job is opened"
        return self._frames

    def _report_frames(self) -> None:
        frames = self._known_frames
        phase = Phase.ENCODING if frames.drawn == frames.total else Phase.INFERRING
        self.report(phase, OPEN_SHARE + (ENCODED_SHARE - OPEN_SHARE) * frames.share)

    def _eta_s(self) -> float | None:
        """Return the seconds that are left: at first those that past jobs needed, and more and more
        what the rate of this job says.
        """
        elapsed_s = self._clock() - self._opened_at
        by_rate, by_past = self._left_by_rate_s(elapsed_s), self._left_by_past_s(elapsed_s)
        if by_past is None or by_rate is None:
            left = by_rate if by_past is None else by_past
            return None if left is None else round(left, 1)
        # Early on the rate is too low: the first frames of a job are encoded late.
        trust = self._known_frames.encoded_share
        return round(trust * by_rate + (1.0 - trust) * by_past, 1)

    def _left_by_past_s(self, elapsed_s: float) -> float | None:
        return None if self._expected_s is None else max(0.0, self._expected_s - elapsed_s)

    def _left_by_rate_s(self, elapsed_s: float) -> float | None:
        """Return the seconds that are left at the rate since the opening.

        Every frame has to be encoded at last, so the encoded ones say how long the others take;
        frames that are prepared or drawn ahead of them say little.
        """
        done = self._fraction - OPEN_SHARE
        if done < RATE_SHARE:
            return None
        encoded = self._known_frames.encoded_share
        if 0.0 < encoded < 1.0:
            return elapsed_s * (1.0 - encoded) / encoded
        return elapsed_s * (1.0 - self._fraction) / done


class _Frames:
    """Which frames of a plan have come how far. Counting something twice counts once.

    Segments are known by their first frames, because those at the end of a job are cut into parts.
    """

    def __init__(self, plan: FramePlan) -> None:
        self.total = plan.n_output
        self._blocks = {block.index: len(block) for block in plan.blocks}
        self._prepared: set[int] = set()
        self._drawn: dict[int, int] = {}  # frames by the first
        self._encoded: dict[int, int] = {}

    @property
    def drawn(self) -> int:
        """How many output frames are drawn."""
        return sum(self._drawn.values())

    @property
    def encoded_share(self) -> float:
        """How many of the frames are encoded, 0 to 1."""
        return sum(self._encoded.values()) / self.total

    @property
    def share(self) -> float:
        """How much of the work on frames is done, 0 to 1."""
        prepared = sum(self._blocks[index] for index in self._prepared)
        return (
            PREPARED_WEIGHT * prepared / sum(self._blocks.values())
            + DRAWN_WEIGHT * self.drawn / self.total
            + ENCODED_WEIGHT * self.encoded_share
        )

    def prepare(self, block: int) -> None:
        self._prepared.add(block)

    def draw(self, segment: Segment) -> None:
        if segment.block is not None:
            self._prepared.add(segment.block)
        self._drawn[segment.start] = len(segment)

    def encode(self, segment: Segment) -> None:
        self.draw(segment)
        self._encoded[segment.start] = len(segment)

    def lose(self, segment: Segment) -> None:
        self._drawn.pop(segment.start, None)
        self._encoded.pop(segment.start, None)
