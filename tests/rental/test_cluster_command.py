"""`lipsync cluster` at a vendor whose machines nobody can log in to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.ray_up.cluster_file import read_cluster_file
from cluster.ray_up.operations import machines, read
from cluster.ray_up.vendor_access import open_rentals
from cluster.rental.identity import Identity, Kind
from cluster.rental.values import OfferQuery, RentRequest
from lipsync.app import run
from serve_app.one_shot.stopping import Stopping
from tests.rental.fakes.runpod import FakeRunPod

ROOT = Path(__file__).resolve().parents[2]
Values = dict[str, Any]


@pytest.fixture
def runpod() -> Iterator[FakeRunPod]:
    fake = FakeRunPod()
    with fake.running():
        yield fake
    assert fake.wrong == []


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runpod: FakeRunPod) -> Path:
    """Return RunPod's cluster file, for the fake; its secrets are in a home of its own."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("not installed: ssh-keygen")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RENTAL_LEDGER", str(tmp_path / "rentals.sqlite"))
    (tmp_path / ".lipsync").mkdir()
    (tmp_path / ".lipsync" / "runpod.key").write_text(runpod.key)
    return cluster_file(tmp_path / "one.yaml", runpod.url, "one")


def cluster_file(path: Path, url: str, name: str) -> Path:
    values = read_cluster_file(ROOT / "cluster" / "runpod.yaml")
    values["cluster_name"], values["provider"]["base_url"] = name, url
    for node_type in values["available_node_types"].values():
        node_type["node_config"]["gpus"] = ["NVIDIA L4"]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def rent(file: Path, kind: Kind) -> str:
    """Rent a machine of the cluster of a file, and return its id."""
    cluster = read(file)
    rentals = open_rentals(cluster.settings)
    offer = rentals.offers(OfferQuery())[0]
    identity = Identity(cluster.name, kind, "ada", "0123abcd")
    made = rentals.rent(RentRequest(identity, offer, "x:1"))
    rentals.close()
    return made.instance_id


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Values]:
    """Run a command; return its exit code and its result."""
    code = run(["cluster", *words, "--json"], Stopping())
    return code, json.loads(capsys.readouterr().out)


def test_check_names_the_fault_and_rents_nothing(
    file: Path, runpod: FakeRunPod, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = file.with_name("wrong.yaml")
    wrong.write_text(file.read_text().replace("vendor: runpod", "vendor: salad"))
    code, found = command(capsys, "check", str(file), str(wrong))
    assert (code, found["files"][str(file)]) == (2, [])
    assert "HTTPS gateway" in found["files"][str(wrong)][0]
    assert runpod.requests == []


def test_the_secrets_are_made_once_and_only_for_this_user(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / ".lipsync"
    read(file)
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"id_ed25519", "ray_auth_token", "lipsync.env"} <= made.keys()
    for name in ("id_ed25519", "ray_auth_token", "lipsync.env"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    read(file)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made


def test_the_workers_of_a_lost_head_are_swept_and_nothing_else(
    file: Path, runpod: FakeRunPod, capsys: pytest.CaptureFixture[str]
) -> None:
    worker, cell, foreign = rent(file, Kind.WORKER), rent(file, Kind.CELL), runpod.foreign()
    assert [one.instance_id for one in machines(read(file))] == [worker]
    assert command(capsys, "sweep", str(file)) == (0, {"returned": [worker]})
    assert set(runpod.machines) == {cell, foreign}


def test_a_cluster_with_a_head_is_not_swept(
    file: Path, runpod: FakeRunPod, capsys: pytest.CaptureFixture[str]
) -> None:
    rent(file, Kind.HEAD), rent(file, Kind.WORKER)
    code, found = command(capsys, "sweep", str(file))
    assert (code, found["code"]) == (1, "cluster_failed")
    assert "lipsync cluster down" in found["message"]
    assert len(runpod.machines) == 2


def test_a_missing_key_is_named(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".lipsync" / "runpod.key").unlink()
    code, found = command(capsys, "status", str(file))
    assert (code, found["code"]) == (1, "wrong_key")
    assert "~/.lipsync/runpod.key" in found["message"]


@pytest.mark.slow
def test_where_one_vendor_has_no_head_the_next_file_is_tried(
    file: Path, runpod: FakeRunPod, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both vendors are full here; the message is that of the last."""
    runpod.is_full = True
    another = FakeRunPod()
    another.is_full = True
    with another.running():
        next_file = cluster_file(tmp_path / "two.yaml", another.url, "two")
        code = run(["cluster", "up", str(file), str(next_file), "--json"], Stopping())
    printed = capsys.readouterr()
    assert code == 1
    assert json.loads(printed.out)["code"] == "cluster_failed"
    assert "NoCapacity" in json.loads(printed.out)["message"]
    assert f"Next: {next_file}" in printed.err
    for vendor in (runpod, another):
        assert any((one.method, one.path) == ("POST", "/v2/pods") for one in vendor.requests)
