"""The ledger, the budget, the names, and what is swept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.rental.errors import OverBudget, VendorDown
from cluster.rental.identity import Identity, Kind, as_word, launch_hash, read_name
from cluster.rental.ledger import Budget, Ledger, is_running, process_owner
from cluster.rental.values import Vendor
from tests.rental.conftest import CELL, FAKES, opened, rentals_of

LETTERS = st.text("abcxyz0189", min_size=1, max_size=5)
WORDS = st.lists(LETTERS, min_size=1, max_size=2).map("-".join)


@pytest.fixture
def account(tmp_path):
    """RunPod, for what is the same at every vendor."""
    with opened(FAKES["runpod"], tmp_path) as opened_account:
        yield opened_account


@given(WORDS, st.sampled_from(Kind), WORDS)
def test_an_identity_survives_its_name_at_every_vendor(cluster, kind, node_type):
    identity = Identity(cluster, kind, node_type, launch_hash({"image": "x"}))
    name = identity.new_name()
    assert read_name(name) == identity
    assert len(name) <= 63
    assert name != identity.new_name()


@given(st.text())
def test_a_name_of_somebody_else_has_no_identity(text):
    assert read_name(text) is None
    assert set(as_word(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("word", ["Prod", "a--b", "-a", "", "a" * 17, "a_b"])
def test_what_cannot_be_read_back_is_refused(word):
    with pytest.raises(ValueError, match="lower-case"):
        Identity(word, Kind.CELL, "x", "0" * 8)


def test_the_budget_holds_for_all_vendors_together(account):
    rentals = rentals_of(account.fake, account.ledger, Budget(1.0, 100))
    request = account.request()
    count = int(1.0 / request.offer.usd_per_hour)
    made = [rentals.rent(request) for _ in range(count)]
    with pytest.raises(OverBudget, match="would exceed the budget of"):
        rentals.rent(request)
    with pytest.raises(OverBudget):
        account.ledger.ask("x", Vendor.SALAD, ("a", "b", 0.9), Budget(1.0, 100))
    assert len(account.fake.machines) == count
    rentals.destroy(made.pop().instance_id)
    made.append(rentals.rent(request))
    for one in made:
        rentals.destroy(one.instance_id)
    rentals.close()


def test_a_loop_that_rents_and_loses_is_stopped_by_the_cap(account):
    now = [1000.0]
    ledger = Ledger(account.fake_folder / "capped.sqlite", clock=lambda: now[0])
    rentals = rentals_of(account.fake, ledger, Budget(100.0, 3))
    request = account.request()
    for _ in range(3):
        rentals.destroy(rentals.rent(request).instance_id)
    with pytest.raises(OverBudget, match="within the last hour"):
        rentals.rent(request)
    now[0] += 3601
    rentals.destroy(rentals.rent(request).instance_id)
    rentals.close()


def test_rents_of_many_threads_keep_to_the_budget(account):
    rentals = rentals_of(account.fake, account.ledger, Budget(1.0, 100))
    request = account.request()
    most = int(1.0 / request.offer.usd_per_hour)

    def rent(_):
        try:
            return rentals.rent(request)
        except OverBudget:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [one for one in pool.map(rent, range(16)) if one is not None]
    assert len(made) == len(account.fake.machines) == most
    for one in made:
        rentals.destroy(one.instance_id)
    rentals.close()


def test_a_machine_with_our_name_that_the_ledger_lacks_is_an_orphan(account):
    made = account.rentals.rent(account.request())
    other = rentals_of(account.fake, Ledger(account.fake_folder / "other.sqlite"))
    (orphan,) = other.orphans("prod")
    assert orphan.instance.instance_id == made.instance_id
    assert "ledger does not have it" in orphan.reason
    assert other.orphans("staging") == ()
    other.sweep("prod")
    other.close()
    assert account.fake.machines == {}
    assert account.rentals.list("prod") == ()


def test_workers_of_a_ray_cluster_are_swept_only_on_request(account):
    worker = Identity("prod", Kind.WORKER, "ada", "0" * 8)
    account.rentals.rent(account.request(worker))
    other = rentals_of(account.fake, Ledger(account.fake_folder / "other.sqlite"))
    assert other.sweep("prod") == ()
    assert len(other.sweep("prod", {Kind.WORKER})) == 1
    other.close()


def test_a_machine_that_was_to_be_destroyed_is_swept(account, no_waits):
    made = account.rentals.rent(account.request())
    account.fake.fail(account.fake.refusal(), method="DELETE")
    with pytest.raises(Exception, match="bad token"):
        account.rentals.destroy(made.instance_id)
    account.fake.fail(account.fake.refusal(), method="GET")
    with pytest.raises(Exception, match="bad token"):
        account.rentals.sweep("prod")
    (swept,) = account.rentals.sweep("prod")
    assert "was not completed" in swept.reason
    assert account.fake.machines == {}


def test_a_measurement_without_its_process_is_swept(account):
    bench = Identity("prod", Kind.BENCH, "l4", "0" * 8)
    account.rentals.rent(account.request(bench))
    assert account.rentals.orphans("prod") == ()  # this process still runs
    gone = subprocess.Popen([sys.executable, "-c", ""])
    owner = process_owner(gone.pid)
    gone.wait()
    assert not is_running(owner)
    with account.ledger._transaction() as db:
        db.execute("UPDATE rents SET owner = ?", (owner,))
    (swept,) = account.rentals.sweep("prod")
    assert "measurement" in swept.reason


def test_the_ledger_is_private_and_forgets_in_time(tmp_path):
    now = [0.0]
    ledger = Ledger(tmp_path / "sub" / "ledger.sqlite", clock=lambda: now[0])
    assert stat.S_IMODE(os.stat(tmp_path / "sub" / "ledger.sqlite").st_mode) == 0o600
    ledger.ask(CELL.new_name(), Vendor.VAST, ("1", "x", 0.1), Budget(1, 9))
    name = ledger.live()[0].name
    ledger.add_facts(name, {"a": "1"})
    ledger.add_facts(name, {"b": "2"})
    assert ledger.facts(name) == {"a": "1", "b": "2"}
    ledger.gone(name)
    ledger.rented(name, "7")  # too late
    assert ledger.live() == ()
    now[0] = 31 * 24 * 3600
    ledger.ask(CELL.new_name(), Vendor.VAST, ("1", "x", 0.1), Budget(1, 9))
    assert ledger.facts(name) == {}


def test_nothing_is_concluded_while_the_vendor_is_down(account, no_waits):
    made = account.rentals.rent(account.request())
    account.rentals._clock = lambda: 10**11
    account.fake.fail(None, method="GET", times=5)
    with pytest.raises(VendorDown):
        account.rentals.list("prod")
    assert [one.instance_id for one in account.rentals.list("prod")] == [made.instance_id]
    account.rentals.destroy(made.instance_id)
