"""The clients of the five vendors against their fakes, which speak HTTP and keep to the specs."""

from __future__ import annotations

import re
from dataclasses import replace

import httpx
import pytest

from cluster.rental.clients import open_backend
from cluster.rental.errors import (
    CallRefused,
    NoCapacity,
    NotOffered,
    NotOurs,
    PartialRent,
    QuotaUsedUp,
    RateLimited,
    RentUnclear,
    VendorDown,
    WrongKey,
)
from cluster.rental.http import VendorHttp
from cluster.rental.identity import read_name
from cluster.rental.ledger import RentState
from cluster.rental.salad import group_body
from cluster.rental.values import InstanceState, OfferQuery, Vendor
from tests.rental.conftest import CELL, FAKES, needs_spec, opened, settings_of
from tests.rental.fakes.server import Reply

pytestmark = pytest.mark.usefixtures("no_waits")

CREATES = {
    "salad": ("POST", "/containers$"),
    "runpod": ("POST", "/v2/pods$"),
    "vast": ("PUT", "/asks/"),
    "tensordock": ("POST", "/instances$"),
    "octaspace": ("POST", "/services/mr$"),
}


def where_created(account):
    method, path = CREATES[account.fake.vendor]
    return {"method": method, "path": path}


def creates(account):
    method, path = CREATES[account.fake.vendor]
    return [
        one for one in account.fake.requests if one.method == method and re.search(path, one.path)
    ]


def test_a_machine_is_rented_seen_and_returned(account):
    made = account.rentals.rent(account.request())
    assert read_name(made.name) == CELL
    (listed,) = account.rentals.list("prod")
    assert (listed.instance_id, listed.state) == (made.instance_id, InstanceState.STARTING)
    assert listed.usd_per_hour
    account.fake.advance()
    found = account.rentals.get(made.instance_id)
    assert found.state is InstanceState.RUNNING
    assert found.identity == CELL
    account.rentals.destroy(made.instance_id)
    account.rentals.destroy(made.instance_id)  # one that is gone is no error
    assert account.rentals.get(made.instance_id) is None
    assert account.rentals.list("prod") == ()
    assert account.ledger.live() == ()


def test_the_address_of_sshd_is_known_once_a_machine_runs(account):
    made = account.rentals.rent(account.request())
    account.fake.advance()
    found = (
        account.rentals.list("prod")[0]  # Vast describes ports as an object in the list only
        if account.fake.vendor == "vast"
        else account.rentals.get(made.instance_id)
    )
    assert found.ssh.host.startswith("192.0.2.")
    assert found.ssh.port > 1024
    account.rentals.destroy(made.instance_id)


def test_all_pages_are_listed(account):
    request = account.request()
    count = 26 if account.fake.vendor == "vast" else 3  # the only vendor with pages
    offers = account.rentals.offers(OfferQuery(interruptible=True))
    rented = {
        account.rentals.rent(replace(request, offer=offers[number % len(offers)])).instance_id
        for number in range(count)
    }
    assert {one.instance_id for one in account.rentals.list("prod")} == rented
    for one in rented:
        account.rentals.destroy(one)


def test_a_lost_machine_leaves_the_list_and_the_ledger(account):
    made = account.rentals.rent(account.request())
    account.fake.lose(made.instance_id)
    assert account.rentals.list("prod") == ()
    assert account.ledger.live()  # a list may lag behind a create
    account.rentals._clock = lambda: 10**11
    assert account.rentals.list("prod") == ()
    assert account.ledger.live() == ()


def test_a_storm_of_429_is_waited_for_and_the_machine_is_rented_once(account):
    request = account.request()
    account.fake.fail(
        Reply(429, text="API requests too frequent"), times=4, **where_created(account)
    )
    account.fake.fail(
        Reply(429, {"detail": "slow down"}, headers={"Retry-After": "3"}), method="GET", times=3
    )
    made = account.rentals.rent(request)
    assert len(creates(account)) == 5
    assert len(account.fake.machines) == 1
    account.rentals.list("prod")
    account.rentals.destroy(made.instance_id)


def test_a_pause_of_hours_and_a_used_up_quota_are_not_waited_for(account):
    request = account.request()
    account.fake.fail(
        Reply(429, {"detail": "slow"}, headers={"Retry-After": "7200"}), **where_created(account)
    )
    with pytest.raises(RateLimited) as caught:
        account.rentals.rent(request)
    assert caught.value.retry_after_s == 7200
    account.fake.fail(Reply(429, {"error": "search_quota_exceeded"}), **where_created(account))
    with pytest.raises(QuotaUsedUp):
        account.rentals.rent(request)
    assert len(creates(account)) == 2
    assert account.ledger.live() == ()


def test_no_capacity_is_told_apart_and_leaves_no_rent(account):
    request = account.request()
    account.fake.is_full = True
    with pytest.raises(NoCapacity):
        account.rentals.rent(request)
    assert len(creates(account)) == 1
    assert account.ledger.live() == ()


def test_a_wrong_key_is_named_without_being_shown(account):
    backend = open_backend(Vendor(account.fake.vendor), settings_of(account.fake, "wrong-secret"))
    with pytest.raises(WrongKey) as caught:
        backend.list()
    backend.close()
    assert "wrong-secret" not in str(caught.value)


def test_a_key_in_a_vendors_message_is_hidden(account):
    account.fake.fail(Reply(400, {"detail": f"bad header {account.fake.key}"}), method="GET")
    with pytest.raises(CallRefused, match=r"\*\*\*"):
        account.rentals.list("prod")


def test_a_vendor_that_is_down_for_a_while_is_asked_again(account):
    made = account.rentals.rent(account.request())
    account.fake.fail(Reply(503, text="<html>maintenance</html>"), times=4)
    assert len(account.rentals.list("prod")) == 1
    account.fake.fail(None, times=4)  # cut connections
    assert len(account.rentals.list("prod")) == 1
    account.fake.fail(Reply(503, text="maintenance"), times=5)
    with pytest.raises(VendorDown):
        account.rentals.list("prod")
    assert len(account.ledger.live()) == 1  # nothing is concluded from a list that failed
    account.rentals.destroy(made.instance_id)


@pytest.mark.parametrize("reply", [None, Reply(502, text="bad gateway")], ids=["cut", "502"])
def test_a_create_whose_answer_is_lost_is_found_and_not_repeated(account, reply):
    request = account.request()
    account.fake.fail(reply, is_late=True, **where_created(account))
    made = account.rentals.rent(request)
    assert len(creates(account)) == 1
    assert account.named_machines() == {made.instance_id}
    assert account.ledger.live()[0].instance_id == made.instance_id
    account.rentals.destroy(made.instance_id)


def test_a_create_that_is_lost_on_the_way_stays_open_in_the_ledger(account):
    request = account.request()
    account.fake.fail(None, **where_created(account))
    with pytest.raises(RentUnclear):
        account.rentals.rent(request)
    (rent,) = account.ledger.live()
    assert rent.state is RentState.ASKED
    account.rentals._clock = lambda: 10**11
    account.rentals.list("prod")
    assert account.ledger.live() == ()


def test_machines_of_others_are_neither_listed_nor_touched(account):
    theirs = account.fake.foreign()
    assert account.rentals.list("prod") == ()
    assert account.rentals.sweep("prod") == ()
    for call in (account.rentals.destroy, account.rentals.stop, account.rentals.get):
        with pytest.raises(NotOurs):
            call(theirs)
    assert account.named_machines() == {theirs}


def test_stopping_keeps_a_machine_where_the_vendor_can(account):
    made = account.rentals.rent(account.request())
    if account.fake.vendor == "octaspace":
        with pytest.raises(NotOffered):
            account.rentals.stop(made.instance_id)
    else:
        account.rentals.stop(made.instance_id)
        assert account.rentals.list("prod")[0].state is InstanceState.STOPPED
    account.rentals.destroy(made.instance_id)


def test_the_last_lines_of_a_container_are_returned(account):
    made = account.rentals.rent(account.request())
    if account.fake.vendor == "tensordock":
        with pytest.raises(NotOffered):
            account.rentals.backend.logs(made.instance_id)
    else:
        account.fake.show(made.instance_id, ["first", "second", '{"seconds": 3}'])
        text = account.rentals.backend.logs(made.instance_id)
        assert text.splitlines()[-2:] == ["second", '{"seconds": 3}']
    account.rentals.destroy(made.instance_id)


@pytest.mark.parametrize(
    ("vendor", "method", "path", "body", "reason"),
    [
        # What the retired v1 of RunPod's API takes.
        ("runpod", "POST", "/v2/pods", {"imageName": "x", "gpuTypeIds": ["a"]}, "'name' is a req"),
        ("runpod", "POST", "/v2/pods", {"name": "x", "gpuCount": 1}, "unknown field gpuCount"),
        ("runpod", "GET", "/v2/machines", None, "there is no path"),
        ("vast", "PUT", "/api/v0/asks/abc", {"image": "x"}, "is not of type 'integer'"),
        (
            "salad",
            "POST",
            "/organizations/acme/projects/lips/containers",
            {"name": "UPPER"},
            "does not match",
        ),
    ],
)
def test_the_fakes_refuse_what_the_specification_does_not_have(vendor, method, path, body, reason):
    needs_spec(FAKES[vendor].spec_file)
    fake = FAKES[vendor]()
    with fake.running():
        headers = {"Authorization": f"Bearer {fake.key}", "Salad-Api-Key": fake.key}
        answer = httpx.request(method, f"{fake.url}{path}", json=body, headers=headers)
    assert answer.status_code == 400
    assert any(reason in wrong for wrong in fake.wrong)


def test_vast_makes_a_machine_and_fails_and_it_is_destroyed(tmp_path):
    with opened(FAKES["vast"], tmp_path) as account:
        request = account.request()
        account.fake.machines["77"] = {"id": 77, "label": "anything"}
        account.fake.fail(
            Reply(400, {"success": False, "msg": "bid too low", "new_contract": 77}),
            **where_created(account),
        )
        with pytest.raises(PartialRent):
            account.rentals.rent(request)
        assert account.named_machines() == set()
        assert account.ledger.live() == ()


def test_salads_rules_are_kept_before_a_call(tmp_path):
    with opened(FAKES["salad"], tmp_path) as account:
        request = account.request()
        by_digest = replace(request, image="worker@sha256:" + "0" * 64)
        with pytest.raises(ValueError, match="by a tag"):
            account.rentals.rent(by_digest)
        assert creates(account) == []
        assert account.ledger.live() == ()
        body = group_body(request, "name")
        assert body["autostart_policy"] is True
        assert not set("()") & set(body["display_name"])
        one, other = account.rentals.rent(request), account.rentals.rent(request)
        assert one.name != other.name
        for made in (one, other):
            account.rentals.destroy(made.instance_id)


def test_an_unreachable_vendor_is_tried_again_even_for_a_create():
    http = VendorHttp(Vendor.RUNPOD, "http://127.0.0.1:9", {"Authorization": "Bearer k"})
    with pytest.raises(VendorDown) as caught:
        http.create("POST", "/v2/pods", {})
    assert not isinstance(caught.value, RentUnclear)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    http.close()
