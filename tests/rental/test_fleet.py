"""Fleets of cells: the commands and the scaling loop's provider, against the fakes."""

from __future__ import annotations

import asyncio
import json
import shlex
import threading

import httpx
import pytest

from cluster.fleet.bench import read_line
from cluster.fleet.cells import OTHER_IDENTITIES
from cluster.fleet.ending import end_cells
from cluster.fleet.provider import RentedFleet, open_cells
from cluster.fleet.settings import FleetSettings
from cluster.rental.values import Vendor
from lipsync.app import run
from orchestrator.gpus import read_gpu_class
from orchestrator.scaling import Offer, ScalingRules
from orchestrator.scaling.fleet import FleetError, MachineState
from orchestrator.service.fleet_file import FleetPlan
from orchestrator.service.scaling_loop import ScalingLoop
from serve_app.one_shot.stopping import Stopping
from tests.orchestrator.databases import RULES, SqliteFiles, open_bench
from tests.orchestrator.running import ADMIN_KEY, DONE, INTERNAL_KEY, running_service
from tests.rental.conftest import FAKES, VENDORS
from tests.rental.fakes.runpod import FakeRunPod
from tests.rental.fakes.salad import RTX_3090
from tests.rental.fakes.server import KEY, Reply
from tests.rental.fakes.tensordock import FakeTensorDock

CLASS = {"salad": "RTX-3090-24GB", "runpod": "RTX-4090-24GB", "vast": "RTX-4090-24GB",
         "tensordock": "RTX-4090-24GB", "octaspace": "RTX-3090-24GB"}  # fmt: skip
RESULT = {"frames_per_s": 50.0, "peak_vram_mib": 3000, "seconds": 20}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return SqliteFiles(tmp_path_factory.mktemp("fleet") / "template.db")


@pytest.fixture
def service(template, tmp_path):
    """A real orchestrator."""
    with running_service(open_bench(template.new(tmp_path), RULES)) as running:
        yield running


@pytest.fixture
def environment(monkeypatch, tmp_path, service):
    """The environment of a launcher, for any vendor."""
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAA test\n")
    for name, value in {
        "RENTAL_LEDGER": tmp_path / "ledger.sqlite",
        "RENTAL_USD_PER_HOUR": 50,
        "RENTAL_RENTS_PER_HOUR": 100,
        "FLEET_IMAGE": "registry.example/lipsync/worker:1-{flavour}",
        "FLEET_FINDINGS": tmp_path / "findings.json",
        "FLEET_SSH_PUBLIC_KEY": key,
        "FLEET_PASS": "B2_KEY_ID",
        "B2_KEY_ID": "key-of-the-bucket",
        "ORCHESTRATOR_BASE_URL": service.url,
        "INTERNAL_API_KEY": INTERNAL_KEY,
        "ORCHESTRATOR_ADMIN_KEY": ADMIN_KEY,
        "SALAD_ORG_NAME": "acme",
        "SALAD_PROJECT_NAME": "lips",
    }.items():
        monkeypatch.setenv(name, str(value))
    return monkeypatch


def reach(environment, fake) -> None:
    environment.setenv(f"{fake.vendor.upper()}_API_KEY", KEY)
    environment.setenv(f"{fake.vendor.upper()}_API_URL", fake.url)


@pytest.fixture
def salad(environment):
    with FAKES["salad"]().running() as fake:
        reach(environment, fake)
        yield fake
    assert fake.wrong == []
    assert fake.machines == {}, "a machine was left behind"


@pytest.fixture(params=VENDORS)
def fake(request, environment):
    with FAKES[request.param]().running() as fake:
        reach(environment, fake)
        yield fake
    assert fake.wrong == []
    assert fake.machines == {}, "a machine was left behind"


def lipsync(capsys, *words: str, code: int = 0):
    """Run a command with `--json` and return what it prints."""
    assert run(["fleet", *words, "--json"], Stopping()) == code
    return json.loads(capsys.readouterr().out)


def scaling_loop(service, vendor: str) -> ScalingLoop:
    """The orchestrator's own loop, with the vendor's class for any work."""
    gpu = CLASS[vendor]
    offer = Offer(vendor, gpu, read_gpu_class(gpu), 0.1, 25.0, startup_s=10.0, max_workers=2)
    rules = ScalingRules(10.0, target_wait_s=60.0, cooldown_up_s=0.0, cooldown_down_s=0.0)
    path = "cluster.fleet.provider:RentedFleet"
    plan = FleetPlan((offer,), rules, fleets={vendor: (path, {"vendor": vendor})})
    return ScalingLoop(service.bench.store, plan, "one")


async def test_the_orchestrator_rents_and_returns_machines_by_itself(fake, service):
    for number in range(40):
        service.submit(f"j{number}")
    loop = scaling_loop(service, fake.vendor)
    await loop.step()
    await loop.step()
    assert len(fake.machines) == 2
    fake.advance()
    fake.lose(next(iter(fake.machines)))
    await loop.step()
    assert len(fake.machines) == 2
    fake.advance()
    fleet = RentedFleet(fake.vendor)
    have = await fleet.have()
    await fleet.close()
    assert [one.state for one in have] == [MachineState.RUNNING] * 2
    busy = have[0].worker_id
    held = service.claim(busy)["musetalk_job_id"]
    for number in range(40):
        if f"j{number}" != held:
            service.admin.delete(f"/v1/avatar/jobs/j{number}")
    for _ in range(3):
        await loop.step()
    (left,) = await _machines(fake.vendor)
    assert left.worker_id == busy  # it finishes its job first
    service.report(held, busy, **DONE)
    for _ in range(3):
        await loop.step()
    assert fake.machines == {}
    stopped = asyncio.Event()
    stopped.set()
    await loop.run(stopped)


async def _machines(vendor: str):
    fleet = RentedFleet(vendor)
    found = await fleet.have()
    await fleet.close()
    return found


async def test_a_rent_that_may_still_come_into_being_is_not_repeated(salad, no_waits):
    fleet = RentedFleet("salad")
    salad.fail(None, method="POST")
    with pytest.raises(FleetError, match="may have been made"):
        await fleet.want("RTX-3090-24GB", 1)
    await fleet.want("RTX-3090-24GB", 1)
    assert salad.machines == {}
    await fleet.close()


def test_a_cell_is_returned_when_its_job_has_ended(salad, service, capsys):
    at = ("--provider", "salad")
    made = lipsync(capsys, "up", *at, "--gpu", "RTX-3090-24GB")
    worker = made["machines"][0]["machine"]
    service.submit("j1")
    assert service.claim(worker)["musetalk_job_id"] == "j1"
    cells = open_cells(Vendor.SALAD, FleetSettings())
    said = []

    def say(text: str) -> None:
        said.append(text)
        (row,) = service.admin.get("/v1/workers").json()["workers"]
        assert row["drain"] is True
        assert len(salad.machines) == 1
        service.report("j1", worker, **DONE)

    end_cells(cells, cells.list(), grace_s=60, say=say, poll_s=0.01)
    cells.close()
    assert said == ["1 of 1 cells still hold jobs."]
    assert salad.machines == {}


def test_a_cell_that_never_ends_its_job_is_returned_after_its_grace(salad, service, capsys):
    made = lipsync(capsys, "up", "--provider", "salad", "--gpu", "RTX-3090-24GB")
    service.submit("j1")
    service.claim(made["machines"][0]["machine"])
    cells = open_cells(Vendor.SALAD, FleetSettings())
    end_cells(cells, cells.list(), grace_s=0.05, say=lambda _: None, poll_s=0.01)
    cells.close()
    assert salad.machines == {}


async def test_no_capacity_is_followed_by_growing_pauses(salad):
    now = [1000.0]
    fleet = RentedFleet("salad", clock=lambda: now[0])
    salad.is_full = True
    creates = lambda: sum(one.method == "POST" for one in salad.requests)  # noqa: E731
    for pause_s in (15, 30, 60):
        before = creates()
        with pytest.raises(FleetError, match="RTX-3090-24GB"):
            await fleet.want("RTX-3090-24GB", 1)
        assert creates() == before + 1
        now[0] += pause_s - 1
        await fleet.want("RTX-3090-24GB", 1)
        assert creates() == before + 1
        now[0] += 1
    await fleet.close()


async def test_a_failed_machine_is_returned_and_replaced(salad):
    fleet = RentedFleet("salad")
    await fleet.want("RTX-3090-24GB", 1)
    (name,) = salad.machines
    salad.machines[name]["current_state"]["status"] = "failed"
    assert await fleet.have() == ()
    await fleet.want("RTX-3090-24GB", 1)
    (other,) = salad.machines
    assert other != name
    await fleet.drain([other])
    await fleet.close()


def test_what_a_cell_of_salad_gets(salad, capsys):
    made = lipsync(capsys, "up", "--provider", "salad", "--gpu", "rtx-3090-24gb")
    (machine,) = made["machines"]
    (group,) = salad.machines.values()
    assert group["container"]["image"] == "registry.example/lipsync/worker:1-cu126"
    assert group["container"]["resources"]["gpu_classes"] == [RTX_3090]
    assert group["priority"] == "batch"
    command = group["container"]["command"]
    assert command[:4] == ["tini", "--", "entrypoint", "env"]
    assert command[-3:] == [f"WORKER_ID={machine['machine']}", "entrypoint", "serve"]
    assert all(name in command for name in OTHER_IDENTITIES)
    variables = group["container"]["environment_variables"]
    assert variables["INTERNAL_API_KEY"] == INTERNAL_KEY
    assert variables["B2_KEY_ID"] == "key-of-the-bucket"
    assert "ORCHESTRATOR_ADMIN_KEY" not in variables
    lipsync(capsys, "down", "--provider", "salad")


def test_the_commands_of_a_fleet(fake, capsys):
    at = ("--provider", fake.vendor)
    gpu = ("--gpu", CLASS[fake.vendor])
    assert len(lipsync(capsys, "up", *at, *gpu, "--count", "2")["machines"]) == 2
    fake.advance()
    status = lipsync(capsys, "status", *at)
    assert {one["state"] for one in status["machines"]} == {"running"}
    assert status["usd_per_hour"] > 0
    assert len(lipsync(capsys, "scale", *at, *gpu, "--count", "3")["machines"]) == 3
    left = lipsync(capsys, "scale", *at, *gpu, "--count", "2")["machines"]
    assert len(left) == 2
    assert len(lipsync(capsys, "drain", left[0]["machine"], *at)["machines"]) == 1
    assert lipsync(capsys, "sweep", *at) == {"destroyed": False, "orphans": []}
    assert lipsync(capsys, "down", *at)["machines"] == []


def test_the_status_says_how_far_a_machine_is(salad, capsys):
    at = ("--provider", "salad")
    lipsync(capsys, "up", *at, "--gpu", "RTX-3090-24GB")
    (machine,) = lipsync(capsys, "status", *at)["machines"]
    assert (machine["state"], machine["detail"]) == ("starting", "deploying: downloading 43 %")
    (group,) = salad.machines.values()
    group["current_state"]["status"] = "running"  # and has no replica yet
    assert lipsync(capsys, "status", *at)["machines"][0]["state"] == "starting"
    salad.advance()
    assert lipsync(capsys, "status", *at)["machines"][0]["state"] == "running"
    lipsync(capsys, "down", *at)


def test_a_table_has_a_column_for_each_fact(salad, capsys):
    assert run(["fleet", "status", "--provider", "salad"], Stopping()) == 0
    columns = ["machine", "id", "class", "state", "jobs", "$/h", "detail"]
    assert capsys.readouterr().out.split() == columns


def test_a_wrong_key_is_a_complaint_with_a_remedy(salad, environment, capsys):
    environment.setenv("SALAD_API_KEY", "wrong")
    said = lipsync(capsys, "status", "--provider", "salad", code=1)
    assert (said["code"], said["exit_code"]) == ("wrong_key", 1)
    environment.delenv("SALAD_API_KEY")
    said = lipsync(capsys, "status", "--provider", "salad", code=1)
    assert "SALAD_API_KEY is not set" in said["message"]
    environment.setenv("SALAD_API_KEY", KEY)
    said = lipsync(capsys, "up", "--provider", "salad", "--gpu", "RTX-1", code=2)
    assert "There is no GPU class" in said["message"]


def test_nothing_is_ended_if_it_cannot_be_drained(salad, environment, capsys):
    lipsync(capsys, "up", "--provider", "salad", "--gpu", "RTX-3090-24GB")
    environment.delenv("ORCHESTRATOR_ADMIN_KEY")
    said = lipsync(capsys, "down", "--provider", "salad", code=2)
    assert "--now" in said["message"]
    assert len(salad.machines) == 1
    lipsync(capsys, "down", "--provider", "salad", "--now")


def test_prices_are_asked_kept_and_reported(fake, capsys, tmp_path):
    file = tmp_path / "prices.md"
    found = lipsync(capsys, "prices", "--provider", fake.vendor, "--report", str(file))
    mine = [one for one in found["prices"] if one["provider"] == fake.vendor]
    assert CLASS[fake.vendor] in {one["class"] for one in mine}
    assert f"| {fake.vendor} |" in file.read_text()
    kept = json.loads((tmp_path / "findings.json").read_text())
    assert kept["prices"][CLASS[fake.vendor]][0]["source"] == "the vendor's offers"


class MeasuringRunPod(FakeRunPod):
    """Pods whose benchmark has ended when they are made. The L4 is slow."""

    def _create(self, body):
        reply = super()._create(body)
        fps = 20.0 if body["gpu"]["id"] == "NVIDIA L4" else 50.0
        assert shlex.split(body["args"])[-3:] == ["entrypoint", "bench", "--json"]
        line = json.dumps(RESULT | {"frames_per_s": fps})
        self.show(reply.body["id"], ["loading", line, "done"])
        return reply


class PostingTensorDock(FakeTensorDock):
    """Machines whose benchmark has ended when they are made, and that post its result."""

    def _create(self, data):
        command = data["attributes"]["cloud_init"]["runcmd"][0]
        url = shlex.split(shlex.split(command)[-1])[-1]
        threading.Thread(target=httpx.post, args=(url,), kwargs={"json": RESULT}).start()
        return super()._create(data)


def test_bench_names_the_cheapest_and_the_fastest_and_leaves_nothing(environment, capsys, tmp_path):
    with MeasuringRunPod().running() as fake:
        reach(environment, fake)
        words = ("--gpu", "RTX-4090-24GB", "--gpu", "L4-24GB", "--gpu", "B200-180GB")
        found = lipsync(capsys, "bench", "--provider", "runpod", *words)
        assert (found["cheapest"], found["fastest"]) == ("RTX-4090-24GB", "RTX-4090-24GB")
        assert found["measurements"][2]["reason"].startswith("runpod has no B200-180GB now.")
        assert fake.machines == {}
        assert fake.wrong == []
    kept = json.loads((tmp_path / "findings.json").read_text())
    assert kept["speeds"]["L4-24GB"]["frames_per_s"] == 20.0


def test_bench_at_a_vendor_without_logs_listens_for_the_result(environment, capsys):
    with PostingTensorDock().running() as fake:
        reach(environment, fake)
        words = ("--gpu", "RTX-4090-24GB", "--listen", "127.0.0.1:0")
        found = lipsync(capsys, "bench", "--provider", "tensordock", *words)
        assert found["fastest"] == "RTX-4090-24GB"
        assert fake.machines == {}
        assert fake.wrong == []


def test_bench_returns_a_machine_that_gives_no_result(environment, capsys, no_waits):
    with FakeRunPod().running() as fake:
        reach(environment, fake)
        fake.fail(Reply(500, text="oops"), method="GET", path="/logs", times=9)
        fake.fail(Reply(404, {"detail": "gone"}), method="GET", path=r"/pods/\w+$")
        found = lipsync(capsys, "bench", "--provider", "runpod", "--gpu", "L4-24GB")
        assert found["fastest"] is None
        assert "lost" in found["measurements"][0]["reason"]
        assert fake.machines == {}


def test_bench_says_so_if_a_machine_could_not_be_returned(environment, capsys, no_waits):
    with MeasuringRunPod().running() as fake:
        reach(environment, fake)
        fake.fail(Reply(503, text="down"), method="DELETE", times=5)
        at = ("--provider", "runpod")
        found = lipsync(capsys, "bench", *at, "--gpu", "L4-24GB")
        assert "was NOT returned" in found["measurements"][0]["reason"]
        assert found["fastest"] == "L4-24GB"
        swept = lipsync(capsys, "sweep", *at, "--yes")
        assert len(swept["orphans"]) == 1
        assert fake.machines == {}


def test_only_a_result_is_read_from_a_log():
    assert read_line("{}\nnoise\n{bad") is None
    assert read_line('{"frames_per_s": 2}\n{"frames_per_s": 3.5}\n{"level": "info"}') is not None
    assert read_line('{"frames_per_s": 3.5}\n{"level": 1}').frames_per_s == 3.5
