"""What the jobs of an ingress share: the scheduler of Generator calls, and places at the stages.

All of it follows the replicas that run. The bounds keep calls here rather than in the queues of
replicas, and what has been prepared, and not been encoded yet, from filling the object store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from musetalk_pipeline.artifacts import frame_bytes
from musetalk_pipeline.face_choice import MOST_DRAWN
from musetalk_pipeline.stages import OpenJob
from serve_app.config.memory import machine_memory_bytes
from serve_app.config.settings import AppArgs
from serve_app.estimates.estimator import Ahead
from serve_app.estimates.forecast import PoolRunners, Runners
from serve_app.graph.replicas import ReplicaCounts, pool_deployment
from serve_app.scheduling.fair_gate import FairGate
from serve_app.scheduling.pool_state import Pace, PoolRates
from serve_app.scheduling.scheduler import SegmentScheduler

MEMORY_SHARE = 0.1  # of the machine, for segments in flight; Ray's object store has 0.3
CALLS_AHEAD = 1  # calls at a CPU stage beyond its threads, so that their arguments are there


class SharedCapacity:
    """The scheduler, and who may use the CPU stages.

    `segments`: the segments in flight, of all jobs. `prepare` and `compose`: calls of the
    Preprocessor and the Finisher. The paces are those of one call.
    """

    def __init__(self, args: AppArgs, why: Callable[[str], str] = lambda deployment: "") -> None:
        """`why` returns why a deployment cannot run, or nothing."""
        driver = args.driver
        self._why = why
        self.weights: Mapping[str, float] = {}  # of jobs, by their origin
        self.scheduler = SegmentScheduler(
            [PoolRates(pool.name, pool.frames_per_s, pool.usd_per_hour) for pool in args.pools],
            policy=driver.policy,
            no_replica_s=driver.no_replica_timeout_s,
        )
        self._preprocessor_threads = args.preprocessor.threads
        self._finisher_threads = args.finisher.threads
        self._preparing = args.preprocessor.threads
        self._composing = args.finisher.threads
        self._pools = [pool.name for pool in args.pools]
        self._engine = args.engine
        room = budget_bytes(driver.max_mb_in_flight)
        self.segments = FairGate(1, size=room, always_one=True)  # in bytes
        self.prepare, self.compose = FairGate(1), FairGate(1)
        self.prepare_pace, self.listen_pace, self.compose_pace = Pace(), Pace(), Pace()

    def weight_of(self, origin: str) -> float:
        """Return the share of a job that was submitted in this way, beside others."""
        return self.weights.get(origin, 1.0)

    def frame_bytes(self, job: OpenJob) -> int:
        """Return what a frame of a job takes between the stages."""
        faces = MOST_DRAWN if job.options.face.face == "all" else 1
        return frame_bytes(self._engine, job.picture, job.options.encode, faces)

    def follow(self, counts: ReplicaCounts) -> None:
        """Take the replicas that run now as what there is."""
        for pool in self._pools:
            deployment = pool_deployment(pool)
            reason = self._why(deployment) or counts.messages.get(deployment, "")
            self.scheduler.set_running(pool, counts.in_pool(pool), reason)
        preparing = max(1, counts.running.get("Preprocessor", 0)) * self._preprocessor_threads
        composing = max(1, counts.running.get("Finisher", 0)) * self._finisher_threads
        self._preparing, self._composing = preparing, composing
        self.prepare.set_places(preparing + CALLS_AHEAD)
        self.compose.set_places(composing + CALLS_AHEAD)
        # One segment in each replica and one that is ready for it, and what the CPUs work on.
        self.segments.set_places(2 * self.scheduler.running + preparing + composing)

    def runners(self) -> Runners:
        """Return what runs now, for estimates."""
        facts = self.scheduler.facts()
        pools = [
            PoolRunners(name, pool.running, pool.frames_per_s) for name, pool in facts.pools.items()
        ]
        return Runners(tuple(pools), self._preparing, self._composing)

    def ahead(self, unfinished: int) -> Ahead:
        """Return the work before a new job. `unfinished`: jobs that wait or run."""
        opened = self.scheduler.jobs_opened
        return Ahead(self.scheduler.frames_waiting(), max(0, unfinished - opened))

    def forget(self, job_id: str) -> None:
        """Drop what is kept about a job that has ended."""
        for gate in (self.segments, self.prepare, self.compose):
            gate.forget(job_id)


def budget_bytes(max_mb: int | None) -> float:
    """Return how much memory segments in flight may take."""
    return MEMORY_SHARE * machine_memory_bytes() if max_mb is None else max_mb * 1e6
