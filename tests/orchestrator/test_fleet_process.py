"""The provider that starts worker processes here, with real processes.

Workers connect to a hub of the test (fleet_worker.py), so that every wait is for an event.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.scaling.dry_run import DryRun
from orchestrator.scaling.fleet import FleetError, MachineState, load_provider
from orchestrator.scaling.process import GUARD, KEPT_FOLDERS, LOG, ProcessFleet

WORKER = Path(__file__).with_name("fleet_worker.py")
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60  # of every wait; none of them should take more than a second
GRACE_S = 0.3


class Hub:
    """What the workers of a test say, in the order of their connections."""

    def __init__(self) -> None:
        self.port = 0
        self.started: asyncio.Queue[Caller] = asyncio.Queue()

    async def hello(self) -> Caller:
        """Return the next worker that has started."""
        return await asyncio.wait_for(self.started.get(), LIMIT_S)


class Caller:
    """One worker process, as it describes itself."""

    def __init__(self, facts: dict, reader: asyncio.StreamReader) -> None:
        self.pid: int = facts["pid"]
        self.folder = Path(facts["folder"])
        self.environment: dict[str, str] = facts["environment"]
        self._reader = reader

    @property
    def worker_id(self) -> str:
        return self.environment["WORKER_ID"]

    async def last_words(self) -> str:
        """Return what the worker sends before the end of its process."""
        return (await asyncio.wait_for(self._reader.read(), LIMIT_S)).decode().strip()


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub, held = Hub(), []

    async def serve(reader, writer):
        held.append(writer)
        hub.started.put_nowait(Caller(json.loads(await reader.readline()), reader))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    hub.port = server.sockets[0].getsockname()[1]
    yield hub
    for writer in held:
        writer.close()
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def a_fleet(hub: Hub, folder: Path, *words: str, **options) -> AsyncIterator[ProcessFleet]:
    """Yield a fleet whose workers call the hub."""
    command = [sys.executable, str(WORKER), str(hub.port), *words]
    fleet = ProcessFleet(command, folder, grace_s=options.pop("grace_s", 30.0), **options)
    try:
        yield fleet
    finally:
        await fleet.close()


async def ended(fleet: ProcessFleet, count: int) -> None:
    """Wait until the fleet has only `count` machines. Their tasks have the names of the workers."""
    async with asyncio.timeout(LIMIT_S):
        while len(await fleet.have()) > count:
            names = {machine.worker_id for machine in await fleet.have()}
            watches = [task for task in asyncio.all_tasks() if task.get_name() in names]
            await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)


async def test_each_worker_has_an_identity_a_folder_and_a_port_of_its_own(hub, tmp_path):
    environment = {"WORKER_PORT": "{port}", "GPU_CLASS_NAME": "{gpu_class}", "TEXT": '{"a": 1}'}
    async with a_fleet(hub, tmp_path, environment=environment, base_port=9100) as fleet:
        await fleet.want("cpu", 2)
        workers = [await hub.hello(), await hub.hello()]
        machines = await fleet.have()
    assert {worker.worker_id for worker in workers} == {machine.worker_id for machine in machines}
    assert {worker.folder for worker in workers} == {tmp_path / m.worker_id for m in machines}
    assert {worker.environment["WORKER_PORT"] for worker in workers} == {"9100", "9101"}
    assert {worker.environment["GPU_CLASS_NAME"] for worker in workers} == {"cpu"}
    assert {worker.environment["TEXT"] for worker in workers} == {'{"a": 1}'}
    assert {(machine.gpu_class, machine.state) for machine in machines} == {
        ("cpu", MachineState.RUNNING)
    }


async def test_a_worker_gets_no_secrets_of_the_orchestrator(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    async with a_fleet(hub, tmp_path) as fleet:
        await fleet.want("cpu", 1)
        worker = await hub.hello()
    assert "DATABASE_URL" not in worker.environment
    assert "PATH" in worker.environment


async def test_a_drained_worker_ends_by_itself_and_the_others_go_on(hub, tmp_path):
    async with a_fleet(hub, tmp_path) as fleet:
        await fleet.want("cpu", 2)
        first, second = await hub.hello(), await hub.hello()
        await fleet.drain([first.worker_id, "unknown"])
        states = {machine.worker_id: machine.state for machine in await fleet.have()}
        assert states == {
            first.worker_id: MachineState.DRAINING,
            second.worker_id: MachineState.RUNNING,
        }
        assert await first.last_words() == '"drained"'
        await ended(fleet, 1)
        assert [machine.worker_id for machine in await fleet.have()] == [second.worker_id]


async def test_a_worker_that_does_not_end_is_killed_with_everything_that_it_started(hub, tmp_path):
    async with a_fleet(hub, tmp_path, "ignore", "spawn", grace_s=GRACE_S) as fleet:
        await fleet.want("cpu", 1)
        processes = [await hub.hello(), await hub.hello()]
        await fleet.drain([processes[0].worker_id])
        for process in processes:
            assert await process.last_words() == ""  # killed, without a word


async def test_what_a_worker_started_does_not_outlive_it(hub, tmp_path):
    async with a_fleet(hub, tmp_path, "spawn") as fleet:
        await fleet.want("cpu", 1)
        processes = [await hub.hello(), await hub.hello()]
        await fleet.close()
        assert sorted([await process.last_words() for process in processes]) == ["", '"drained"']


async def test_no_worker_outlives_an_orchestrator_that_is_killed(hub, tmp_path):
    code = (
        "import asyncio, sys; from orchestrator.scaling.process import ProcessFleet\n"
        "async def main():\n"
        "    fleet = ProcessFleet(sys.argv[2:], sys.argv[1], grace_s=30)\n"
        "    await fleet.want('cpu', 2)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    words = [str(tmp_path), sys.executable, str(WORKER), str(hub.port)]
    orchestrator = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *words, cwd=ROOT
    )
    workers = [await hub.hello(), await hub.hello()]
    orchestrator.send_signal(signal.SIGKILL)
    await orchestrator.wait()
    assert [await worker.last_words() for worker in workers] == ['"drained"'] * 2


async def test_a_lost_worker_is_replaced_and_more_are_not_started(hub, tmp_path):
    now = [0.0]
    async with a_fleet(hub, tmp_path, clock=lambda: now[0]) as fleet:
        await fleet.want("cpu", 1)
        await fleet.want("cpu", 1)
        lost = await hub.hello()
        now[0] = 100.0  # long enough for a worker that has worked
        await fleet.want("cpu", 0)  # wants less, but ends none
        assert len(await fleet.have()) == 1
        os.kill(lost.pid, signal.SIGKILL)
        assert await lost.last_words() == ""
        await ended(fleet, 0)
        await fleet.want("cpu", 1)
        assert (await hub.hello()).worker_id != lost.worker_id


async def test_workers_that_end_early_are_started_again_with_growing_pauses(hub, tmp_path):
    now = [0.0]
    async with a_fleet(hub, tmp_path, "fail", clock=lambda: now[0]) as fleet:
        for pause in (2.0, 4.0, 8.0):
            await fleet.want("cpu", 1)
            await hub.hello()
            await ended(fleet, 0)
            now[0] += pause - 0.5
            await fleet.want("cpu", 1)
            assert await fleet.have() == ()
            now[0] += 0.5


async def test_there_are_at_most_max_workers(hub, tmp_path):
    async with a_fleet(hub, tmp_path, max_workers=1) as fleet:
        with pytest.raises(FleetError, match="All 1 workers of this machine are in use"):
            await fleet.want("cpu", 3)
        await hub.hello()
        assert len(await fleet.have()) == 1


async def test_a_closed_fleet_starts_nothing(tmp_path):
    fleet = ProcessFleet(["true"], tmp_path)
    await fleet.close()
    with pytest.raises(FleetError, match="closed"):
        await fleet.want("cpu", 1)


async def test_a_command_that_does_not_exist_is_reported_in_its_log(tmp_path):
    fleet = ProcessFleet(["/nowhere/worker"], tmp_path)
    await fleet.want("cpu", 1)
    await ended(fleet, 0)
    [log] = tmp_path.glob(f"*/{LOG}")
    assert "/nowhere/worker" in log.read_text()
    await fleet.close()


async def test_only_the_folders_of_the_last_workers_are_kept(hub, tmp_path):
    now = [0.0]
    async with a_fleet(hub, tmp_path, clock=lambda: now[0]) as fleet:
        for _ in range(KEPT_FOLDERS + 2):
            await fleet.want("cpu", 1)
            worker = await hub.hello()
            await fleet.drain([worker.worker_id])
            await ended(fleet, 0)
        folders = list(tmp_path.iterdir())
        assert worker.folder in folders
        assert len(folders) == KEPT_FOLDERS + 1  # the last one was started after the sweep


@pytest.mark.parametrize(
    ("code", "expected"),
    [("import sys; sys.exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)],
)
async def test_the_guard_ends_as_its_command_does(tmp_path, code, expected):
    guard = await guarded(tmp_path, sys.executable, "-c", code)
    assert await asyncio.wait_for(guard.wait(), LIMIT_S) == expected


async def guarded(folder: Path, *command: str) -> asyncio.subprocess.Process:
    """Start a guard with a small log."""
    words = ["--log", "log", "--lock", "lock", "--grace-s", "1", "--max-log-bytes", "1000", "--"]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", str(GUARD), *words, *command),
        stdin=asyncio.subprocess.PIPE,
        cwd=folder,
    )


async def test_the_log_of_a_worker_is_bounded_and_keeps_the_end(tmp_path):
    write = "for i in range(5000): print(i)"
    guard = await guarded(tmp_path, sys.executable, "-c", write)
    assert await asyncio.wait_for(guard.wait(), LIMIT_S) == 0
    assert "4999" in (tmp_path / "log").read_text()
    assert sum(path.stat().st_size for path in tmp_path.glob("log*")) <= 2000


def test_a_provider_is_chosen_by_its_path(tmp_path):
    options = {"command": ["true"], "folder": tmp_path}
    loaded = load_provider("orchestrator.scaling.process:ProcessFleet", options)
    assert isinstance(loaded, ProcessFleet)
    assert isinstance(load_provider("orchestrator.scaling.dry_run:DryRun", {}), DryRun)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("orchestrator.scaling.nowhere:Fleet", {}),
        ("orchestrator.scaling.dry_run:Fleet", {}),
        ("DryRun", {}),
        ("orchestrator.scaling.dry_run:DryRun", {"colour": 1}),
    ],
)
def test_a_provider_that_cannot_be_made_is_named(path, options):
    with pytest.raises(ValueError, match=path):
        load_provider(path, options)
