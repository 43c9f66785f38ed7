"""The orchestrator's side of one ingress that claims jobs: the worker, its heartbeats, its outbox.

1. `start` looks at the machine once, and begins to beat (which registers) and to deliver reports.
2. `work_once` claims a job when the poll interval has passed, and runs it to its report.
"""

import asyncio
import socket
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
from serve_app.config.environment import Environment, EnvironmentInvalid
from serve_app.config.gpu_class import detect_gpu_class, gpu_class
from serve_app.fleet.claim_journal import ClaimJournal
from serve_app.fleet.identity import buffer_worker_id, kept_id, worker_id
from serve_app.fleet.options import WorkerOptions
from serve_app.fleet.outbox import Outbox
from serve_app.fleet.system_info import collect_system_info, measure_download_mbit_s
from serve_app.fleet.worker import Worker
from serve_app.jobs.service import JobService
from serve_app.telemetry.background import run_again

BASE_URL = "ORCHESTRATOR_BASE_URL"
WORKER_TYPES: tuple[WorkerType, ...] = ("main", "transient", "expensive")
LONGEST_BEAT_S = 10.0  # the predecessor's, whatever the poll interval; 30 s of silence is offline
SHORTEST_BUFFER_BEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class PollingRules:
    """What polling needs of the environment; none of it is there unless polling is on."""

    base_url: str
    api_key: str
    worker_type: WorkerType
    is_buffer: bool
    interval_s: float

    @property
    def heartbeat_interval_s(self) -> float:
        """Seconds between heartbeats: they do not slow down with the polls, and a buffer worker's
        do not speed up with them either.
        """
        shortest_s = SHORTEST_BUFFER_BEAT_S if self.is_buffer else 0.0
        return max(shortest_s, min(self.interval_s, LONGEST_BEAT_S))


def polling_rules(env: Environment) -> PollingRules | None:
    """Return how to poll, None in queue mode.

    Raises:
        EnvironmentInvalid: polling without an orchestrator or a key that can be used, or as an
            unknown worker type.
    """
    if env.mode == "queue":
        return None
    if env.polling_url is None:
        names = f"{f'BUFFER_{BASE_URL} or ' if env.is_buffer else ''}{BASE_URL}"
        raise EnvironmentInvalid(
            f"Jobs are to be claimed ({env.mode} mode), so {names} must be set"
        )
    if env.internal_api_key is None:
        raise EnvironmentInvalid(
            f"Jobs are to be claimed ({env.mode} mode), so INTERNAL_API_KEY must be set"
        )
    is_own = env.is_buffer and bool(env.buffer_orchestrator_url)
    name = f"BUFFER_{BASE_URL}" if is_own else BASE_URL
    api_key = env.internal_api_key.get_secret_value()
    check_connection(env.polling_url, api_key, name)
    if env.is_buffer:  # its requests carry no worker type, so any will do
        interval_s = env.buffer_poll_interval_s
        return PollingRules(env.polling_url, api_key, "main", True, interval_s)
    kind = next((name for name in WORKER_TYPES if name == env.worker_type), None)
    if kind is None:
        raise EnvironmentInvalid(f"WORKER_TYPE must be one of {', '.join(WORKER_TYPES)}")
    return PollingRules(env.polling_url, api_key, kind, False, env.poll_interval_s)


def check_connection(base_url: str, api_key: str, name: str = BASE_URL) -> None:
    """See that an address and a key can be used at all; nothing is connected to. `name`: of the
    variable that the address comes from.

    Raises:
        EnvironmentInvalid: they cannot. The sentence repeats neither.
    """
    try:
        OrchestratorHttp(base_url, api_key)
    except ValueError as exc:
        text = str(exc).replace("the orchestrator's base URL", name)
        raise EnvironmentInvalid(text) from None


class Polling:
    """Claims jobs and reports them, under the machine's one identity.

    Args:
        capacity: jobs at a time; as many calls of `work_once` may be under way.
        batch_size: what is known of it, for the reports.
    """

    def __init__(
        self,
        rules: PollingRules,
        env: Environment,
        state: Path,
        service: JobService,
        can_work: Callable[[], Awaitable[bool]],
        capacity: int,
        batch_size: Callable[[], int | None],
    ) -> None:
        self._rules, self._env, self._state = rules, env, state
        self._service, self._can_work = service, can_work
        self._capacity, self._batch_size = capacity, batch_size
        self._worker: Worker | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look at the machine, register, and begin to beat."""
        profile = await self._look_at_machine()

        def connect() -> WorkerClient:
            http = OrchestratorHttp(self._rules.base_url, self._rules.api_key)
            kind = BufferClient if self._rules.is_buffer else MainClient
            return kind(http, profile)

        outbox = Outbox(self._state / "outbox")
        worker = self._make_worker(connect, profile, outbox)
        sender = connect()

        async def deliver() -> None:
            try:
                await outbox.deliver_forever(sender.send_report)
            finally:
                await sender.aclose()

        self._tasks.append(asyncio.create_task(worker.beat_forever()))
        self._tasks.append(asyncio.create_task(run_again("final reports", deliver)))
        self._worker = worker

    async def aclose(self) -> None:
        """End what `start` began, and let another process speak for this identity."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._worker is not None:
            await self._worker.aclose()

    async def work_once(self) -> bool:
        """Claim and do a job, if it is time to ask and there is room; False if there was none."""
        return self._worker is not None and await self._worker.work_once()

    async def _look_at_machine(self) -> WorkerProfile:
        is_buffer = self._rules.is_buffer
        detected = await asyncio.to_thread(detect_gpu_class)
        speed = self._env.speed_test_url
        mbit_s = None if speed is None else await measure_download_mbit_s(speed)
        info = await asyncio.to_thread(collect_system_info, self._state, download_mbit_s=mbit_s)
        if is_buffer:
            machine = buffer_worker_id(self._env, host=socket.gethostname())
        else:
            machine = worker_id(self._env, fallback=kept_id(self._state))
        return WorkerProfile(
            worker_id=machine,
            gpu_class=gpu_class(self._env, detected=detected, is_buffer=is_buffer),
            worker_type=self._rules.worker_type,
            provider=self._env.provider,
            capacity=self._capacity,
            system_info=info.as_fields(),
        )

    def _make_worker(
        self, connect: Callable[[], WorkerClient], profile: WorkerProfile, outbox: Outbox
    ) -> Worker:
        return Worker(
            connect,
            outbox,
            ClaimJournal(self._state / "claims", profile.worker_id),
            runner=self._service.run_claimed,
            cancel=self._cancel,
            can_work=self._can_work,
            options=WorkerOptions(
                capacity=self._capacity,
                heartbeat_interval_s=self._rules.heartbeat_interval_s,
                claim_interval_s=self._rules.interval_s,
                config_label=self._env.config_label,
                legacy_size_source=self._env.legacy_size_source,
            ),
            batch_size=self._batch_size,
        )

    async def _cancel(self, job_id: str) -> None:
        await self._service.void_claim(job_id)
