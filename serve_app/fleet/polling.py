"""Polls an orchestrator for one ingress: the worker, its heartbeats and its outbox.

1. `start` collects the facts about the machine, and starts the heartbeats, the first of which
   registers the worker, and the final reports.
2. `claim_and_run` claims a job if the poll interval has passed, runs it and reports it.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

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
from serve_app.fleet.worker import FleetWorker
from serve_app.graph.builders import keeps_results_locally
from serve_app.jobs.service import JobService
from serve_app.telemetry.background import run_again

BASE_URL = "ORCHESTRATOR_BASE_URL"
WORKER_TYPES: tuple[WorkerType, ...] = ("main", "transient", "expensive")
LONGEST_BEAT_S = 10.0  # the predecessor's, whatever the poll interval; 30 s of silence is offline
SHORTEST_BUFFER_BEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class PollingRules:
    """The settings of polling. They exist only if polling is enabled."""

    base_url: str
    api_key: str
    worker_type: WorkerType
    is_buffer: bool
    interval_s: float

    @property
    def heartbeat_interval_s(self) -> float:
        """Seconds between heartbeats, which do not become rarer with longer poll intervals.

        Those of a buffer worker do not become more frequent with shorter ones either.
        """
        shortest_s = SHORTEST_BUFFER_BEAT_S if self.is_buffer else 0.0
        return max(shortest_s, min(self.interval_s, LONGEST_BEAT_S))


def polling_rules(env: Environment) -> PollingRules | None:
    """Return the settings of polling, None in queue mode.

    Raises:
        EnvironmentInvalid: the orchestrator, its key or the worker type is missing or invalid.
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
    """Check that an address and a key are valid, without a connection.

    Args:
        name: the variable that holds the address.

    Raises:
        EnvironmentInvalid: one of them is not. The message repeats neither.
    """
    try:
        OrchestratorHttp(base_url, api_key)
    except ValueError as exc:
        text = str(exc).replace("the orchestrator's base URL", name)
        raise EnvironmentInvalid(text) from None


class Polling:
    """Claims jobs and reports them, under the one identity of this machine.

    Args:
        state: the folder of claims and final reports.
        can_run: returns whether a job could run now.
        capacity: how many jobs may run at once, each in a call of `claim_and_run`.
        batch_size: returns the batch size for the reports, None if it is unknown.
        capabilities: what this machine can do, for an orchestrator that understands it.
    """

    def __init__(
        self,
        rules: PollingRules,
        env: Environment,
        state: Path,
        *,
        service: JobService,
        can_run: Callable[[], Awaitable[bool]],
        capacity: int,
        batch_size: Callable[[], int | None],
        capabilities: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self._rules, self._env, self._state = rules, env, state
        self._service, self._can_run = service, can_run
        self._capacity, self._batch_size = capacity, batch_size
        self._worker: FleetWorker | None = None
        self._capabilities = capabilities or {}
        self._beating: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Collect the facts about the machine, and start the heartbeats and the final reports."""
        profile = await self._collect_profile()

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

        self._beating = asyncio.create_task(worker.beat_forever())
        self._tasks.append(self._beating)
        self._tasks.append(asyncio.create_task(run_again("final reports", deliver)))
        self._worker = worker

    async def aclose(self) -> None:
        """End what `start` started, and let another process own this identity."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._worker is not None:
            await self._worker.aclose()

    async def claim_and_run(self, give_up: asyncio.Event | None = None) -> bool:
        """Claim and run a job if the poll interval has passed. Return False if there was none.

        A claim that the orchestrator holds is given up when `give_up` is set.
        """
        return self._worker is not None and await self._worker.claim_and_run(give_up)

    async def leave(self, reason: str) -> None:
        """Stop the heartbeats and say goodbye. Call it when nothing runs here any more."""
        if self._worker is None or self._beating is None:
            return
        self._beating.cancel()
        await asyncio.wait({self._beating})
        await self._worker.leave(reason)

    async def _collect_profile(self) -> WorkerProfile:
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
            capabilities=self._capabilities,
        )

    def _make_worker(
        self, connect: Callable[[], WorkerClient], profile: WorkerProfile, outbox: Outbox
    ) -> FleetWorker:
        return FleetWorker(
            connect,
            outbox,
            ClaimJournal(self._state / "claims", profile.worker_id),
            runner=self._service.run_claimed,
            cancel=self._cancel,
            can_run=self._can_run,
            options=WorkerOptions(
                capacity=self._capacity,
                heartbeat_interval_s=self._rules.heartbeat_interval_s,
                claim_interval_s=self._rules.interval_s,
                config_label=self._env.config_label,
                has_storage=not keeps_results_locally(self._env) or self._env.allow_local_store,
                legacy_size_source=self._env.legacy_size_source,
            ),
            batch_size=self._batch_size,
        )

    async def _cancel(self, job_id: str) -> None:
        await self._service.revoke_claim(job_id)
