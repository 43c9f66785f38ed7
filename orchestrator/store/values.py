"""The values that go into the store and come out of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import JsonValue

from orchestrator.net.shown import with_urls
from orchestrator.routing import Requirements, RoutingRules
from orchestrator.routing.values import ANY_GPU
from orchestrator.scaling.learnt import Learnt
from orchestrator.scaling.values import Offer, Work
from orchestrator.store.states import AttemptEnd, JobState

JsonObject = Mapping[str, JsonValue]
DEFAULT_ROUTING = RoutingRules()

# In place of the address of a video. Clients cannot send such an address.
KEPT_AVATAR = "avatar:"

KeyKind = Literal["client", "worker"]


@dataclass(frozen=True, slots=True)
class Rules:
    """How long things last and how often they are tried.

    Attributes:
        lease_s: A worker that is silent for so long has lost its jobs.
        listing_grace_s: Heartbeats this soon after a claim need not list the job, because the
            claim's answer may still be on its way.
        max_failures: Processing errors after which a run of a job is dead.
        max_interruptions: Interruptions after which a run is dead. They are no failures, but a job
            that ends every machine it reaches must not go round for ever.
        keep_ended_s: Age at which an ended job is deleted with its result and its errors.
        keep_workers_s: Silence after which a worker's row is deleted.
        max_queued: Jobs that may wait. More are refused. None: any number may.
        keep_decisions_s: Age at which a decision of the scaling is deleted.
        max_attempt_s: A worker that has held a job for so long loses it, heartbeats or not.
        upload_s: How long the addresses are valid that an attempt uploads to. None: no attempt
            gets such addresses.
        publish_lease_s: How long this service holds a job while it publishes its output. It is
            longer than all tries at that take.
        routing: Which worker gets which job.
        offers: The kinds of worker that have a price, which routing and scaling compare.
    """

    lease_s: float = 30.0
    listing_grace_s: float = 2.0
    max_failures: int = 3
    max_interruptions: int = 20
    keep_ended_s: float = 30 * 24 * 3600.0
    keep_workers_s: float = 7 * 24 * 3600.0
    max_queued: int | None = 100_000
    keep_decisions_s: float = 7 * 24 * 3600.0
    max_attempt_s: float = 12 * 3600.0
    upload_s: float | None = None
    publish_lease_s: float = 600.0
    routing: RoutingRules = DEFAULT_ROUTING
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as a client submits it. Its addresses may be signed, so `repr` leaves them out."""

    id: str
    client: str
    video_url: str = field(repr=False)
    audio_url: str = field(repr=False)
    aspect_ratio: str | None = None
    resolution: str | None = None
    params: JsonObject | None = None
    metadata: JsonObject | None = None
    priority: int = 5
    deadline: float | None = None
    requires: Requirements = ANY_GPU
    idempotency_key: str | None = None
    webhook_url: str | None = field(default=None, repr=False)

    @property
    def content_key(self) -> str:
        """A digest of what is asked for, the same for addresses that were signed again."""
        content = [
            same_address(self.video_url),
            same_address(self.audio_url),
            self.aspect_ratio,
            self.resolution,
            with_urls(self.params or {}, same_address),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def same_address(url: str) -> str:
    """Return what two addresses of the same file have in common, however they were signed.

    Scheme and host are case-insensitive; user, port and path are not.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # not an address; the download reports it
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, user + at + host.lower(), parts.path, "", ""))


def without_query(url: str) -> str:
    """Return the address without query and fragment, which signatures are part of."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is stored."""

    id: str
    client: str
    state: JobState
    video_url: str = field(repr=False)
    audio_url: str = field(repr=False)
    aspect_ratio: str | None
    resolution: str | None
    params: JsonObject | None
    metadata: JsonObject | None
    priority: int
    deadline: float | None
    requires: Requirements
    run: int
    attempt: int
    failures: int
    interruptions: int
    worker_id: str | None
    progress: float
    phase: str
    counts: JsonObject | None
    output_url: str | None = field(repr=False)
    metrics: JsonObject | None
    receipt: JsonObject | None
    error: str | None
    failure: JsonObject | None
    published_attempt: int | None
    created_at: float
    updated_at: float
    ended_at: float | None

    @property
    def avatar_id(self) -> str | None:
        """The prepared avatar that is used in place of a video; None if there is a video."""
        is_avatar = self.video_url.startswith(KEPT_AVATAR)
        return self.video_url.removeprefix(KEPT_AVATAR) if is_avatar else None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a job. `ending` is None while it runs."""

    number: int
    run: int
    worker_id: str
    worker_type: str
    gpu_class: str | None
    started_at: float
    ended_at: float | None
    ending: AttemptEnd | None
    phase: str | None
    error: str | None
    failure: JsonObject | None


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a job. Numbers count up within the job."""

    number: int
    kind: str
    happened_at: float
    attempt: int
    facts: JsonObject | None


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and the cursor of the next page; None on the last one."""

    jobs: tuple[Job, ...]
    next_cursor: tuple[float, str] | None


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list has. None, and no states, stand for all.

    `worker_id`: the jobs that a worker holds. `tried_by`: those that it has ever had.
    """

    client: str | None = None
    states: tuple[JobState, ...] = ()
    worker_id: str | None = None
    tried_by: str | None = None
    id_prefix: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says about itself. None: this call does not say it."""

    id: str
    worker_type: str
    provider: str | None = None
    gpu_class: str | None = None
    capacity: int | None = None
    system_info: JsonObject | None = None
    capabilities: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A claimed job: `attempt` belongs to the worker as long as it is heard of.

    `buffer_job_id` is the name of this attempt for buffer workers, None for others.
    """

    job: Job
    attempt: int
    lease_s: float
    buffer_job_id: str | None


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job that a heartbeat lists, and its attempt if the worker was told its number."""

    job_id: str
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat.

    `jobs` is what the worker holds. It is None from workers that do not list their jobs; what they
    hold follows from `is_busy` and `current_job_id`.
    """

    worker: WorkerFacts
    is_busy: bool
    error: str | None = None
    current_job_id: str | None = None
    jobs: tuple[ListedJob, ...] | None = None


@dataclass(frozen=True, slots=True)
class BeatAnswer:
    """Jobs that the worker has to stop, and whether it may claim any more."""

    cancel: tuple[str, ...] = ()
    is_drained: bool = False


@dataclass(frozen=True, slots=True)
class AttemptName:
    """Which attempt a report is about.

    Workers that were told the attempt's number send it. Others are known by `worker_id`, and then
    their latest attempt at the job is meant. A buffer worker's final report has a `buffer_job_id`
    and no `job_id`.
    """

    job_id: str | None = None
    worker_id: str | None = None
    number: int | None = None
    buffer_job_id: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running attempt has come. `fraction` is 0 to 1."""

    fraction: float
    phase: str
    counts: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of an attempt that succeeded.

    `published_attempt` is the attempt if this service has published what it uploaded.
    """

    output_url: str = field(repr=False)
    metrics: JsonObject
    receipt: JsonObject | None = None
    published_attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. `facts` are the worker's own, such as `code` and `stage`."""

    error: str
    facts: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the store knows it. `held` counts the jobs that it holds a lease of."""

    id: str
    worker_type: str
    provider: str | None
    gpu_class: str | None
    capacity: int
    status: str
    error: str | None
    system_info: JsonObject | None
    is_drained: bool
    is_online: bool
    held: int
    first_seen_at: float
    seen_at: float
    left_because: str | None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The hashed key of a client or of one worker."""

    id: str
    kind: KeyKind
    name: str
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    created_at: float
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """What scaling decides on. `now` is the database's clock, `speeds` are by GPU class."""

    now: float
    work: tuple[Work, ...]
    workers: tuple[Worker, ...]
    speeds: Mapping[str, Learnt]


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """A decision of the scaling. `error` is what the provider said if it did not do it."""

    id: int
    made_at: float
    provider: str
    gpu_class: str
    have: int
    want: int
    reason: str
    error: str | None


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """A loop of which one runs at a time, in the process `holder`, until `held_until` at least.

    `stepped_at` is when its last step ended, `error` is why that one failed, and `facts` are what
    it saw, as the loop defines them.
    """

    name: str
    holder: str
    held_until: float
    stepped_at: float | None
    error: str | None
    facts: JsonObject | None
