"""Who may call, by the head of the request alone (docs/protocol.md §1, "Who may call")."""

from __future__ import annotations

import pytest
from starlette.types import Scope

from serve_app.config.environment import read_environment
from serve_app.gate.callers import CallerRules

HERE = ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"]
ELSEWHERE = ["10.0.0.7", "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.7", "0.0.0.0", "testclient"]
PATHS = ["/generate", "/v1/avatar/jobs", "/v1/avatar/jobs/x", "/files/x.mp4", "/docs", "/nothing",
         "/openapi.json", "/metrics", "/hc/", "//hc"]  # fmt: skip


def rules(**environment: str) -> CallerRules:
    return CallerRules.of(read_environment(environment))


def head(
    path: str = "/generate",
    peer: str | None = "127.0.0.1",
    *,
    query: str = "",
    method: str = "POST",
    **headers: str,
) -> Scope:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    client = None if peer is None else (peer, 40000)
    return {
        "type": "http", "method": method, "path": path, "query_string": query.encode(),
        "headers": named, "client": client, "root_path": "",
    }  # fmt: skip


def status(rules: CallerRules, scope: Scope) -> int:
    rejection = rules.check(scope)
    return 200 if rejection is None else rejection.status_code


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("peer", HERE)
def test_a_local_caller_needs_no_key(path: str, peer: str) -> None:
    """Mend 1.2: the predecessor's poller and Salad's queue worker post on loopback without one."""
    for environment in ({}, {"INTERNAL_API_KEY": "to-the-orchestrator"}):
        assert status(rules(**environment), head(path, peer)) == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("peer", ELSEWHERE)
def test_a_caller_from_elsewhere_is_refused_with_the_setting_named(path: str, peer: str) -> None:
    """Mend 4.9."""
    rejection = rules().check(head(path, peer))
    assert rejection is not None and rejection.status_code == 403
    assert "INGRESS_API_KEY" in rejection.hint and "ALLOW_ANONYMOUS" in rejection.hint
    assert status(rules(ALLOW_ANONYMOUS="true"), head(path, peer)) == 200


def test_no_peer_at_all_is_not_loopback() -> None:
    assert status(rules(), head(peer=None)) == 403


@pytest.mark.parametrize("peer", ELSEWHERE)
def test_a_caller_from_elsewhere_needs_the_orchestrators_key_where_there_is_no_other(
    peer: str,
) -> None:
    strict = rules(INTERNAL_API_KEY="k1", ALLOW_ANONYMOUS="true")
    assert status(strict, head(peer=peer)) == 401
    assert status(strict, head(peer=peer, x_internal_api_key="wrong")) == 403
    assert status(strict, head(peer=peer, x_internal_api_key="k1")) == 200
    assert status(strict, head(peer=peer, authorization="Bearer k1")) == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("peer", ["127.0.0.1", "192.0.2.1"])
def test_the_callers_key_is_asked_of_everybody(path: str, peer: str) -> None:
    keyed = rules(INGRESS_API_KEY="k2", INTERNAL_API_KEY="k1", ALLOW_ANONYMOUS="true")
    assert status(keyed, head(path, peer)) == 401
    assert status(keyed, head(path, peer, x_internal_api_key="k1")) == 403
    assert status(keyed, head(path, peer, x_internal_api_key="k2")) == 200
    assert status(keyed, head(path, peer, authorization="bearer  k2")) == 200
    assert status(keyed, head(path, peer, authorization="Basic k2")) == 401


def test_a_key_beyond_ascii_is_compared_as_utf8() -> None:
    keyed = rules(INGRESS_API_KEY="schlüssel")
    assert status(keyed, head(x_internal_api_key="schlüssel")) == 200
    assert status(keyed, head(x_internal_api_key="schlussel")) == 403


FORWARDED = [
    {"forwarded": "for=127.0.0.1"}, {"x_forwarded_for": "127.0.0.1"}, {"x_forwarded_host": "a"},
    {"X_Forwarded_Proto": "https"}, {"via": "1.1 proxy"}, {"x_real_ip": "127.0.0.1"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FORWARDED, ids=str)
def test_what_was_forwarded_does_not_come_from_this_machine(headers: dict[str, str]) -> None:
    assert status(rules(), head(**headers)) == 403
    assert status(rules(INTERNAL_API_KEY="k"), head(**headers)) == 401
    # And no header makes a caller from elsewhere a local one.
    assert status(rules(), head(peer="192.0.2.1", **headers)) == 403


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://localhost.evil.example",
     "http://[::1", "http://10.0.0.1:8000", ""],
)  # fmt: skip
def test_a_page_of_another_site_is_not_a_local_caller(origin: str) -> None:
    """A name of another site may resolve to loopback, so `Host` cannot vouch for an `Origin`."""
    host = origin.removeprefix("http://") or "127.0.0.1:8000"
    assert status(rules(), head(origin=origin, host=host)) == 403


@pytest.mark.parametrize(
    "origin", ["http://localhost:8000", "http://127.0.0.1:3000", "http://[::1]:8000"]
)
def test_a_page_of_this_machine_is_a_local_caller(origin: str) -> None:
    assert status(rules(), head(origin=origin, sec_fetch_site="same-origin")) == 200


def test_a_cross_site_request_is_refused_but_a_followed_link_is_not() -> None:
    seen = {"sec_fetch_site": "cross-site"}
    assert status(rules(), head("/v1/avatar/jobs", method="GET", **seen)) == 403
    visit = seen | {"sec_fetch_mode": "navigate"}
    assert status(rules(), head("/docs", method="GET", **visit)) == 200
    assert status(rules(), head("/generate", method="POST", **visit)) == 403


@pytest.mark.parametrize(
    "seen", [{"user_agent": "Mozilla/5.0"}, {"user_agent": "chosen", "accept_language": "en"}]
)
def test_a_browser_that_came_by_a_name_of_another_site_is_not_a_local_caller(
    seen: dict[str, str],
) -> None:
    """Its page may have pointed that name at this machine; what it reads carries no `Origin`, and
    where the page may choose the `User-Agent` it says nothing.
    """
    read = head("/v1/avatar/jobs", method="GET", host="rebound.example:8000", **seen)
    assert status(rules(), read) == 403
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert status(rules(), head("/v1/avatar/jobs", method="GET", host=host, **seen)) == 200
    program = head("/v1/avatar/jobs", method="GET", host="worker.example:8000")
    assert status(rules(), program) == 200


@pytest.mark.parametrize("path", ["/hc", "/health"])
@pytest.mark.parametrize("environment", [{}, {"INGRESS_API_KEY": "k"}], ids=str)
def test_probes_answer_everybody(path: str, environment: dict[str, str]) -> None:
    assert status(rules(**environment), head(path, "192.0.2.1", x_forwarded_for="a")) == 200


@pytest.mark.parametrize("path", ["/v1/ping", "/v1/preflight"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "192.0.2.1"])
def test_the_workers_token_opens_the_fleets_own_checks(path: str, peer: str) -> None:
    """Both headers are `Authorization: Bearer`, so the token has to do beside a callers' key."""
    for environment in ({}, {"INGRESS_API_KEY": "k"}):
        tokened = rules(WORKER_TOKEN="token", **environment)
        assert status(tokened, head(path, peer)) == 401
        assert status(tokened, head(path, peer, authorization="Bearer token")) == 200
        assert status(tokened, head(path, peer, authorization="Bearer wrong")) == 403
    assert status(tokened, head(path, peer, authorization="Bearer k")) == 200
    assert status(tokened, head(path, peer, x_internal_api_key="k")) == 200
    assert status(tokened, head("/generate", peer, authorization="Bearer token")) == 403


def test_without_a_token_no_token_is_right() -> None:
    assert status(rules(), head("/v1/preflight")) == 401
    assert status(rules(), head("/v1/preflight", authorization="Bearer x")) == 403
    assert status(rules(), head("/v1/preflight", authorization="Bearer ")) == 401


def test_the_public_ping_is_open_and_the_preflight_is_not() -> None:
    public = rules(WORKER_PING_PUBLIC="true", WORKER_TOKEN="t", INGRESS_API_KEY="k")
    assert status(public, head("/v1/ping", "192.0.2.1")) == 200
    assert status(public, head("/v1/preflight", "192.0.2.1")) == 401


def test_a_signed_link_is_passed_on_to_where_files_are_served() -> None:
    """Mend 2.1: only files have links, and only their signature stands for a key."""
    keyed = rules(INGRESS_API_KEY="k")
    query = "expires=1&signature=x"
    assert status(keyed, head("/files/x.mp4", query=query)) == 200
    assert status(keyed, head("/v1/avatar/jobs", query=query)) == 401
    assert status(keyed, head("/files/x.mp4", query="expires=1")) == 401
    assert keyed.check_key(head("/files/x.mp4", query=query)) is not None


def test_an_application_under_a_prefix_has_the_same_rules() -> None:
    under = head("/app/hc", "192.0.2.1")
    under["root_path"] = "/app"
    assert status(rules(), under) == 200
    under["path"] = "/application/hc"
    assert status(rules(), under) == 403


def test_secrets_are_not_in_the_repr() -> None:
    secret = rules(INGRESS_API_KEY="s3cret", INTERNAL_API_KEY="s3cret", WORKER_TOKEN="s3cret")
    assert "s3cret" not in repr(secret)
