"""The orchestrator's side of one ingress: a worker per job slot, their heartbeats, their outbox.

1. `start` looks at the machine once, and begins to beat (which registers) and to deliver reports.
2. `work_once` claims a job for a slot when its poll interval has passed, and runs it to its report.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.client import (
    BufferClient,
    MainClient,
    OrchestratorHttp,
    WorkerClient,
    WorkerProfile,
    WorkerType,
)
from serve_app.background import run_again
from serve_app.claim_journal import ClaimJournal
from serve_app.identity import detect_gpu_class, gpu_class, new_worker_id, slot_id, worker_id
from serve_app.outbox import Outbox
from serve_app.service import JobService
from serve_app.settings import Environment, EnvironmentInvalid
from serve_app.system_info import collect_system_info, measure_download_mbit_s
from serve_app.worker import Worker, WorkerOptions

logger = logging.getLogger(__name__)

WORKER_TYPES: tuple[WorkerType, ...] = ("main", "transient", "expensive")


@dataclass(frozen=True, slots=True)
class PollingRules:
    """What polling needs of the environment; None of it is there unless polling is on."""

    base_url: str
    api_key: str
    worker_type: WorkerType
    is_buffer: bool
    interval_s: float


def polling_rules(env: Environment) -> PollingRules | None:
    """Return how to poll, None if the environment names no orchestrator.

    Raises:
        EnvironmentInvalid: an orchestrator without a key, or an unknown worker type.
    """
    if env.polling_url is None:
        return None
    if env.internal_api_key is None:
        raise EnvironmentInvalid("ORCHESTRATOR_BASE_URL is set, so INTERNAL_API_KEY must be too")
    kind = next((name for name in WORKER_TYPES if name == env.worker_type), None)
    if kind is None:
        raise EnvironmentInvalid(f"WORKER_TYPE must be one of {', '.join(WORKER_TYPES)}")
    interval_s = env.buffer_poll_interval_s if env.is_buffer else env.poll_interval_s
    return PollingRules(env.polling_url, env.internal_api_key, kind, env.is_buffer, interval_s)


class Polling:
    """Claims jobs and reports them, one worker identity per slot."""

    def __init__(
        self,
        rules: PollingRules,
        env: Environment,
        state: Path,
        service: JobService,
        can_work: Callable[[], Awaitable[bool]],
        slots: int,
    ) -> None:
        self._rules, self._env, self._state = rules, env, state
        self._service, self._can_work, self._slots = service, can_work, slots
        self._workers: list[Worker] = []
        self._next_claim = [0.0] * slots
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look at the machine, register, and begin to beat."""
        detected = await asyncio.to_thread(detect_gpu_class)
        speed = self._env.speed_test_url
        mbit_s = None if speed is None else await measure_download_mbit_s(speed)
        info = await asyncio.to_thread(collect_system_info, self._state, download_mbit_s=mbit_s)
        machine = worker_id(
            os.environ, fallback=_kept_id(self._state), is_buffer=self._rules.is_buffer
        )
        outbox = Outbox(self._state / "outbox")
        for slot in range(len(self._workers), self._slots):  # those left, if this failed before
            profile = WorkerProfile(
                worker_id=slot_id(machine, slot),
                gpu_class=gpu_class(os.environ, detected=detected),
                worker_type=self._rules.worker_type,
                provider=self._env.provider,
                system_info=info.as_fields(),
            )
            self._start_worker(profile, outbox)
        sender = self._connect(WorkerProfile(machine, "", self._rules.worker_type))
        deliver = run_again("final reports", lambda: outbox.deliver_forever(sender.send_report))
        self._tasks.append(asyncio.create_task(deliver))

    async def work_once(self, slot: int) -> bool:
        """Claim and do a job, if it is time to ask again; False if there was none."""
        now = time.monotonic()
        if slot >= len(self._workers) or now < self._next_claim[slot]:
            return False
        did_work = await self._workers[slot].work_once()
        # After a job the next may wait already; without one, once an interval is enough.
        pause_s = 0.0 if did_work else self._rules.interval_s
        self._next_claim[slot] = now + pause_s
        return did_work

    def _start_worker(self, profile: WorkerProfile, outbox: Outbox) -> None:
        def connect() -> WorkerClient:
            return self._connect(profile)

        worker = Worker(
            connect,
            outbox,
            ClaimJournal(self._state / "claims", profile.worker_id),
            runner=self._service.run_claimed,
            cancel=self._cancel,
            can_work=self._can_work,
            options=WorkerOptions(
                heartbeat_interval_s=self._rules.interval_s,
                config_label=self._env.config_label,
                batch_size=self._env.batch_size,
            ),
        )
        self._tasks.append(asyncio.create_task(worker.beat_forever()))
        self._workers.append(worker)

    def _connect(self, profile: WorkerProfile) -> WorkerClient:
        http = OrchestratorHttp(self._rules.base_url, self._rules.api_key)
        return BufferClient(http, profile) if self._rules.is_buffer else MainClient(http, profile)

    async def _cancel(self, job_id: str) -> None:
        await self._service.void_claim(job_id)


def _kept_id(state: Path) -> str:
    """Return a random identity that survives restarts: a claim in progress is found by it."""
    path = state / "worker_id"
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if kept:
        return kept
    fresh = new_worker_id()
    path.write_text(fresh)
    return fresh
