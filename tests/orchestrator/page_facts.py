"""A service that has been at work for a while: workers of every tier, jobs in every state."""

from __future__ import annotations

import random

from orchestrator.gpus import read_gpu_class
from orchestrator.routing import Requirements
from orchestrator.scaling import Decision
from orchestrator.scaling.values import Offer
from orchestrator.store.leases import FailureKind
from orchestrator.store.values import (
    AttemptName,
    Beat,
    Completion,
    Failure,
    ListedJob,
    NewJob,
    Progress,
    WorkerFacts,
)
from tests.orchestrator.databases import Bench, new_job

CARDS = (
    ("salad-7f3a91", "main", "salad", "RTX-5060Ti-16GB"),
    ("salad-b20c44", "main", "salad", "RTX-3090-24GB"),
    ("salad-e8d017", "main", "salad", "RTX-4070-12GB"),
    ("vast-310984", "transient", "vast", "RTX-4090-24GB"),
    ("vast-311027", "transient", "vast", "RTX-3090-24GB"),
    ("runpod-9xk2", "expensive", "runpod", "RTX-5090-32GB"),
    ("buffer-studio", "buffer", None, "RTX-2080-8GB"),
)
LANGUAGES = ("en", "de", "pl", "pt-br", "ja", "fr")
NO_FACE = Failure(
    "No face was found in the video.",
    {"error_type": "media_error", "code": "no_face", "stage": "validation", "input": "video"},
)
NO_MEMORY = Failure(
    "CUDA out of memory. Tried to allocate 1.21 GiB.",
    {"error_type": "processing_error", "code": "gpu_out_of_memory", "stage": "inference"},
)


OFFERS = tuple(
    Offer(provider, name, read_gpu_class(name), price, speed, 300.0, 20)
    for provider, name, price, speed in (
        ("salad", "RTX-5060Ti-16GB", 0.07, 31.0),
        ("salad", "RTX-3090-24GB", 0.09, 36.0),
        ("salad", "RTX-4070-12GB", 0.07, 33.0),
        ("vast", "RTX-4090-24GB", 0.34, 74.0),
        ("vast", "RTX-3090-24GB", 0.19, 36.0),
        ("runpod", "RTX-5090-32GB", 0.69, 96.0),
    )
)
DECISIONS = (
    Decision("salad", "RTX-5060Ti-16GB", 0, 2, "Start 2 workers: the queue needs 61 frames/s."),
    Decision("vast", "RTX-3090-24GB", 0, 1, "Start 1 worker: a deadline would be missed."),
    Decision("vast", "RTX-3090-24GB", 1, 0, "Drain 1 worker: it has not been needed for 60 s."),
)


class Plant:
    """Fills a store as clients and workers would."""

    def __init__(self, bench: Bench, video_url: str = "https://media.example/result.mp4") -> None:
        self._bench, self._store, self._video_url = bench, bench.store, video_url
        self._random = random.Random(7)
        self.workers = [WorkerFacts(*card) for card in CARDS]

    def decide(self) -> None:
        """Let the scaling loop have run."""
        self._store.hold_loop("scaling", "a process", 120.0)
        for count, decision in enumerate(DECISIONS):
            number = self._store.add_decisions([decision])[0]
            if count == 1:
                self._store.decision_failed(number, "Vast: no machine is free at this price.")
            self._bench.age(48)
        offers = [
            {
                "provider": offer.provider,
                "gpu_class": offer.gpu_class,
                "ready": 2,
                "starting": int(offer.provider == "salad"),
                "draining": int(offer.provider == "vast"),
                "frames_per_s": offer.frames_per_s,
                "usd_per_hour": 3 * offer.usd_per_hour,
                "usd_per_minute": offer.usd_per_minute,
            }
            for offer in OFFERS
        ]
        usd = sum(3 * offer.usd_per_hour for offer in OFFERS)
        facts = {"jobs": 9, "frames": 37_155, "usd_per_hour": usd, "offers": offers}
        self._store.note_loop("scaling", "a process", None, facts)

    def fill(self, lessons: int = 14) -> None:
        """Let a service be at work for an hour, and finish so many jobs."""
        for worker in self.workers:
            self._store.register(worker)
        for number in range(lessons):
            self._finish(self._submit(f"lesson-{number + 1:02}-{self._language(number)}"), number)
            self._bench.age(self._random.uniform(90, 240))
        self._reject(self._submit("intro-take-2"))
        self._bench.age(70)
        self._bury(self._submit("keynote-4k"))
        self._bench.age(110)
        self._store.cancel(self._submit("trailer-draft"))
        for worker in self.workers[:-1]:
            self._store.register(worker)
        self._store.drain("vast-311027")
        self.decide()
        for number, fraction in enumerate((0.83, 0.46, 0.12)):
            self._run(self._submit(f"webinar-{number + 3}"), number, fraction)
            self._bench.age(14)
        for number in range(6):
            self._submit(f"course-b-{number + 1:02}", client="academy")
            self._bench.age(3)
        self._beat()

    def _submit(self, job_id: str, client: str = "studio") -> str:
        name = job_id.partition("-")[0]
        new: NewJob = new_job(
            job_id,
            client=client,
            video_url=f"https://media.example/{name}/presenter.mp4?signature=secret",
            audio_url=f"https://media.example/{name}/{job_id}.wav?signature=secret",
            aspect_ratio="16:9",
            resolution="1080p",
            metadata={"order": 4711, "language": job_id.rpartition("-")[2]},
            requires=Requirements(8.0, frozenset()),
        )
        return self._store.submit(new)[0].id

    def _language(self, number: int) -> str:
        return LANGUAGES[number % len(LANGUAGES)]

    def _claim(self, number: int) -> AttemptName:
        worker = self.workers[number % 4]
        lease = self._store.claim(worker)
        assert lease is not None
        return AttemptName(lease.job.id, worker.id, lease.attempt)

    def _finish(self, job_id: str, number: int) -> None:
        self._bench.age(self._random.uniform(1, 9))
        name = self._claim(number)
        minutes, usd = self._random.uniform(0.5, 3), self._random.uniform(0.001, 0.002)
        for fraction, phase in ((0.05, "downloading"), (0.4, "inferring"), (0.95, "uploading")):
            self._bench.age(minutes * 14)
            self._store.progress(name, Progress(fraction, phase))
        receipt = {"usd": usd * minutes, "finished_s": minutes * 60, "paid_s": minutes * 40}
        metrics = {"total_time": round(minutes * 42, 1), "gpu_class": "RTX-3090-24GB"}
        self._store.finish(name, Completion(self._video_url, metrics, receipt))

    def _reject(self, job_id: str) -> None:
        self._store.fail(self._claim(1), NO_FACE, FailureKind.INPUT)

    def _bury(self, job_id: str) -> None:
        for number in range(3):
            name = self._claim(number)
            self._bench.age(9 + 7 * number)
            self._store.progress(name, Progress(0.3, "inferring"))
            self._bench.age(16)
            self._store.fail(name, NO_MEMORY, FailureKind.PROCESSING)
            self._bench.age(4)

    def _run(self, job_id: str, number: int, fraction: float) -> None:
        name = self._claim(number)
        counts = {"frames_done": int(fraction * 4500), "frames_total": 4500}
        self._store.progress(name, Progress(fraction, "inferring", counts))

    def _beat(self) -> None:
        held = {number: f"webinar-{number + 3}" for number in range(3)}
        for number, worker in enumerate(self.workers[:-1]):
            jobs = (ListedJob(held[number]),) if number in held else ()
            self._store.beat(Beat(worker, bool(jobs), jobs=jobs))
