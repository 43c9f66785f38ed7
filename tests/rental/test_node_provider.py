"""The NodeProvider on RunPod's client and its fake."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler.node_launch_exception import NodeLaunchException

from cluster.ray_up.cluster_settings import MODULE, NodeSettings, ProviderSettings
from cluster.ray_up.node_provider import RentedNodeProvider
from cluster.ray_up.nodes import LAG_S, Nodes
from cluster.ray_up.pauses import FIRST_S, Pauses
from cluster.ray_up.renting import LaunchFailed, Renting
from cluster.ray_up.tag_file import TagFile
from cluster.ray_up.vendor_access import open_rentals
from cluster.rental.identity import Identity, Kind
from tests.rental.fakes.runpod import FakeRunPod

NODE = {"gpus": ["NVIDIA L4", "NVIDIA GeForce RTX 4090"], "image": "x:1", "usd_per_hour": 1.0}
HASH = "A" * 32
Values = dict[str, Any]


@pytest.fixture
def runpod() -> Iterator[FakeRunPod]:
    fake = FakeRunPod()
    with fake.running():
        yield fake
    assert fake.wrong == []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runpod: FakeRunPod) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RENTAL_LEDGER", str(tmp_path / "rentals.sqlite"))
    (tmp_path / "runpod.key").write_text(f"{runpod.key}\n")
    return tmp_path


def settings(runpod: FakeRunPod, **changes: Any) -> Values:
    return {
        "type": "external",
        "module": MODULE,
        "vendor": "runpod",
        "topology": "multi",
        "global_networking": True,
        "api_key_file": "~/runpod.key",
        "base_url": runpod.url,
        "usd_per_hour": 2.0,
        "rents_per_hour": 20,
        "ssh_public_key": "ssh-ed25519 AAAA",
        "head_launch_hash": HASH,
        **changes,
    }


class Opened:
    """The providers of a test. They are closed at its end."""

    def __init__(self, runpod: FakeRunPod) -> None:
        self._runpod, self._made = runpod, list[RentedNodeProvider]()

    def __call__(self, cluster: str = "prod", **changes: Any) -> RentedNodeProvider:
        """Open one, with the key and the ledger that the environment leads to."""
        made = RentedNodeProvider(settings(self._runpod, **changes), cluster)
        self._made.append(made)
        return made

    def close(self) -> None:
        for one in self._made:
            one.close()


@pytest.fixture
def opened(runpod: FakeRunPod, home: Path) -> Iterator[Opened]:
    made = Opened(runpod)
    yield made
    made.close()


@pytest.fixture
def provider(opened: Opened) -> RentedNodeProvider:
    return opened()


def tags(kind: str = "worker", node_type: str = "ada", launch: str = HASH) -> dict[str, str]:
    return {
        "ray-node-type": kind,
        "ray-user-node-type": node_type,
        "ray-launch-config": launch,
        "ray-node-status": "uninitialized",
    }


def rent(provider: RentedNodeProvider, **named: str) -> str:
    [node_id] = provider.create_node(NODE, tags(**named), 1)
    return str(node_id)


def creates(runpod: FakeRunPod) -> int:
    return sum((one.method, one.path) == ("POST", "/v2/pods") for one in runpod.requests)


def test_a_machine_is_listed_with_the_tags_that_it_was_rented_with(
    provider: RentedNodeProvider,
) -> None:
    head, worker = rent(provider, kind="head", node_type="head"), rent(provider)
    assert provider.non_terminated_nodes({"ray-node-type": "head"}) == [head]
    assert set(provider.non_terminated_nodes({})) == {head, worker}
    assert tags().items() <= provider.node_tags(worker).items()
    provider.set_node_tags(worker, {"ray-node-status": "up-to-date", "ray-node-type": "head"})
    assert provider.node_tags(worker)["ray-node-status"] == "up-to-date"
    assert provider.node_tags(worker)["ray-node-type"] == "worker"  # the name says so


def test_another_computer_reads_from_the_names_what_each_machine_is(
    provider: RentedNodeProvider,
    runpod: FakeRunPod,
    opened: Opened,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, worker = rent(provider, kind="head", node_type="head"), rent(provider)
    monkeypatch.setenv("HOME", str(home / "elsewhere"))
    monkeypatch.setenv("RENTAL_LEDGER", str(home / "elsewhere.sqlite"))
    (home / "elsewhere").mkdir()
    (home / "elsewhere" / "runpod.key").write_text(runpod.key)
    elsewhere = opened()
    assert set(elsewhere.non_terminated_nodes({})) == {head, worker}
    # Ray rents another head where this differs from the digest of the file.
    assert elsewhere.node_tags(head)["ray-launch-config"] == HASH
    assert elsewhere.node_tags(worker)["ray-user-node-type"] == "ada"
    elsewhere.terminate_node(worker)
    assert worker not in runpod.machines


def test_a_head_with_another_configuration_is_told_from_the_wanted_one(
    provider: RentedNodeProvider,
) -> None:
    head = rent(provider, kind="head", node_type="head", launch="B" * 32)
    assert provider.node_tags(head)["ray-launch-config"] != HASH


def test_other_machines_are_neither_seen_nor_touched(
    provider: RentedNodeProvider, runpod: FakeRunPod, opened: Opened
) -> None:
    foreign = runpod.foreign()
    rent(opened("other"))
    assert provider.non_terminated_nodes({}) == []
    assert provider.is_terminated(foreign) and provider.node_tags(foreign) == {}
    assert len(runpod.machines) == 2


def test_ending_a_machine_twice_is_no_error(
    provider: RentedNodeProvider, runpod: FakeRunPod
) -> None:
    worker = rent(provider)
    for _ in range(2):
        provider.terminate_nodes([worker])
    assert runpod.machines == {}
    assert provider.non_terminated_nodes({}) == [] and provider.is_terminated(worker)
    provider.cleanup_cluster_resources()


def test_a_machine_runs_when_it_can_be_logged_in_to(
    provider: RentedNodeProvider, runpod: FakeRunPod
) -> None:
    worker = rent(provider)
    assert not provider.is_running(worker) and provider.external_ip(worker) is None
    runpod.advance()
    provider.non_terminated_nodes({})
    assert provider.is_running(worker)
    assert provider.external_ip(worker) == "192.0.2.9"
    assert provider.internal_ip(worker) == "10.1.2.3"


@pytest.mark.parametrize(
    "inside, host, port", [(False, "192.0.2.9", 40022), (True, "10.1.2.3", 22)]
)
def test_every_command_goes_to_the_port_of_its_machine(
    provider: RentedNodeProvider, runpod: FakeRunPod, inside: bool, host: str, port: int
) -> None:
    worker = rent(provider)
    runpod.advance()
    provider.non_terminated_nodes({})
    sent: list[list[str]] = []

    class Runner:
        """What Ray hands its commands to."""

        @staticmethod
        def check_call(command: list[str], **_: Any) -> int:
            sent.append(command)
            return 0

        @staticmethod
        def check_output(command: list[str], **_: Any) -> bytes:
            sent.append(command)
            return b""

    auth = {"ssh_user": "root", "ssh_private_key": "/k"}
    runner = provider.get_command_runner("", worker, auth, "prod", Runner, inside)
    runner.run("uptime", with_output=True)
    runner.run("uptime", with_output=True, ssh_options_override_ssh_key="/other")
    runner.run("uptime", with_output=True)
    for command, key in zip(sent, ("/k", "/other", "/k"), strict=True):
        assert f"Port={port}" in command and f"root@{host}" in command
        assert command[command.index("-i") + 1] == key
    assert f"-p {port} root@{host}" in runner.remote_shell_command_str()


def test_a_machine_that_has_stopped_is_returned_and_counts_as_lost(
    provider: RentedNodeProvider, runpod: FakeRunPod
) -> None:
    worker = rent(provider)
    runpod.machines[worker]["status"] = "EXITED"
    assert provider.non_terminated_nodes({}) == []
    assert runpod.machines == {}


def test_no_capacity_is_asked_for_once_however_often_ray_repeats_it(
    provider: RentedNodeProvider, runpod: FakeRunPod
) -> None:
    runpod.is_full = True
    categories = []
    for _ in range(20):
        with pytest.raises(NodeLaunchException) as raised:
            rent(provider)
        categories.append(raised.value.category)
    assert categories == ["NoCapacity"] + ["BackingOff"] * 19
    assert creates(runpod) == 2  # one of each GPU
    assert all(len(category) <= 20 for category in categories)


def test_after_the_pause_the_vendor_is_asked_again(runpod: FakeRunPod, home: Path) -> None:
    now = [0.0]
    own = ProviderSettings.model_validate(settings(runpod))
    rentals = open_rentals(own)
    renting = Renting(rentals, own, Pauses(lambda: now[0], lambda: 0.0))
    ada, node = Identity("prod", Kind.WORKER, "ada", "0123abcd"), NodeSettings.model_validate(NODE)
    runpod.is_full = True
    with pytest.raises(LaunchFailed):
        renting.rent(ada, node)
    runpod.is_full = False
    with pytest.raises(LaunchFailed, match="The next try is in 20 s"):
        renting.rent(ada, node)
    now[0] += FIRST_S
    assert renting.rent(ada, node).name is not None
    rentals.close()


def test_the_next_offer_is_taken_where_the_cheapest_is_gone(
    provider: RentedNodeProvider, runpod: FakeRunPod
) -> None:
    from tests.rental.fakes.runpod import problem

    text = "There are no longer any instances available"
    runpod.fail(problem(400, text), method="POST", path="/v2/pods$")
    worker = rent(provider)
    assert runpod.machines[worker]["gpu"]["id"] == "NVIDIA GeForce RTX 4090"


def test_machines_that_this_ledger_does_not_have_count_in_the_budget(
    provider: RentedNodeProvider,
    runpod: FakeRunPod,
    opened: Opened,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(4):
        rent(provider)
    monkeypatch.setenv("RENTAL_LEDGER", str(home / "of-another-head.sqlite"))
    another = opened()
    with pytest.raises(NodeLaunchException, match=r"4 machines cost \$1.72 an hour") as raised:
        rent(another)
    assert raised.value.category == "OverBudget"
    assert len(runpod.machines) == 4


def test_the_cap_on_rents_ends_a_loop_that_rents_and_loses(
    runpod: FakeRunPod, opened: Opened
) -> None:
    provider = opened(rents_per_hour=3)
    for _ in range(3):
        provider.terminate_node(rent(provider))
    with pytest.raises(NodeLaunchException) as raised:
        rent(provider)
    assert raised.value.category == "OverBudget"
    assert creates(runpod) == 3


def test_a_wrong_key_has_a_category_of_its_own(
    provider: RentedNodeProvider, runpod: FakeRunPod
) -> None:
    runpod.key = "another"
    with pytest.raises(NodeLaunchException) as raised:
        rent(provider)
    assert raised.value.category == "WrongKey"


def test_many_threads_lose_no_machine_and_no_tag(runpod: FakeRunPod, opened: Opened) -> None:
    shared = opened(usd_per_hour=1000.0, rents_per_hour=1000)

    def work(number: int) -> str:
        worker = rent(shared)
        shared.set_node_tags(worker, {"number": str(number)})
        shared.non_terminated_nodes({})
        if number % 2:
            shared.terminate_node(worker)
        return worker

    with ThreadPoolExecutor(8) as pool:
        rented = list(pool.map(work, range(24)))
    kept = rented[::2]
    assert set(shared.non_terminated_nodes({})) == set(kept) == set(runpod.machines)
    assert [shared.node_tags(one)["number"] for one in kept] == [str(n) for n in range(0, 24, 2)]


def test_a_list_that_lags_behind_neither_loses_nor_revives_a_machine(
    runpod: FakeRunPod, home: Path, tmp_path: Path
) -> None:
    now = [0.0]
    own = ProviderSettings.model_validate(settings(runpod))
    rentals = open_rentals(own)
    renting = Renting(rentals, own, Pauses())
    nodes = Nodes(rentals, "prod", TagFile("prod"), lambda: now[0])
    identity = Identity("prod", Kind.WORKER, "ada", "0123abcd")
    rented = renting.rent(identity, NodeSettings.model_validate(NODE))
    nodes.add(rented)
    listed = dict(runpod.machines)
    runpod.machines.clear()  # not listed yet
    assert [node.instance_id for node in nodes.refresh()] == [rented.instance_id]
    runpod.machines.update(listed)
    nodes.refresh()
    nodes.destroy(rented.instance_id)
    runpod.machines.update(listed)  # still listed
    assert nodes.refresh() == []
    now[0] += LAG_S + 1
    assert [node.instance_id for node in nodes.refresh()] == [rented.instance_id]
    nodes.destroy(rented.instance_id)
    rentals.close()
