"""Who may call, links to files and the shape of errors, at the ingress' own routes on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from musetalk_pipeline.errors import PipelineError
from serve_app.api.services import ApiOptions
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs, QueueSettings
from serve_app.contract.codes import HINTS, ErrorCode
from serve_app.contract.outcomes import Failure, Outcome, Phase, Progress, Success
from serve_app.gate.access_control import GuessLimiter
from serve_app.gate.callers import CallerRules
from serve_app.gate.links import Bases, LinkMaker, Links, LinkSigner, LinkState, read_secret
from serve_app.gate.signed_paths import file_subject
from serve_app.jobs.job import ABANDONED, CANCELLED, Job
from serve_app.outputs.store import object_name
from tests.hostile.test_requests import MINIMAL
from tests.joints.job_door import Door, serving
from tests.waiting import until_async

KEY = "callers-key-one"
CONTENT = bytes(range(256)) * 8
SHAPE = {
    "status", "error_type", "error_message", "code", "hint", "input", "stage", "details",
    "retryable", "stage_times", "musetalk_job_id",
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


@contextlib.asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[tuple[Door, Any]]:
    door = Door(folder, **options)
    try:
        async with serving(door.app) as client:
            yield door, client
    finally:
        door.registry.close()


def stored(folder: Path, job_id: str = "hello-1") -> str:
    """Put a result where the local store keeps it; its location."""
    outputs = folder / "results"
    (outputs / f"{object_name(job_id)}.mp4").write_bytes(CONTENT)
    (outputs / f"{object_name(job_id)}.json").write_bytes(b"{}")
    return f"/files/{object_name(job_id)}.mp4"


def ended(door: Door, outcome: Outcome) -> Job:
    """End the job that waits."""
    job = door.registry.take(lease_s=60, max_attempts=3)
    assert job is not None
    assert door.registry.finish(job, outcome, Progress(Phase.COMPLETED, 1.0))
    door.services.jobs._changes.announce(job.id)
    return job


async def generated(client: httpx.AsyncClient, door: Door, outcome: Outcome, **sent: Any) -> Any:
    """Ask for a job by POST /generate and let it end so."""
    call = asyncio.create_task(client.post("/generate", json=MINIMAL, **sent))
    await until_async(
        lambda: door.registry.page("queued", 1).jobs or call.done(), "the job was not entered"
    )
    assert not call.done(), call.result().text
    ended(door, outcome)
    return await call


# --- who may call ---------------------------------------------------------------------------------


async def test_the_orchestrators_key_does_not_lock_local_callers_out(tmp_path: Path) -> None:
    """Mend 1.2: the predecessor's poller and Salad's queue worker post on loopback, keyless."""
    async with opened(tmp_path, INTERNAL_API_KEY="to-the-orchestrator") as (door, client):
        location = stored(tmp_path)
        answer = await generated(client, door, Success(location, {"total_time": 1.0}))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}, {"Via": "1.1 x"},
     {"Origin": "https://evil.example"}],
    ids=str,
)  # fmt: skip
async def test_what_came_through_somebody_else_is_refused(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    """Mends 1.2 and 4.9, over a real socket on loopback."""
    async with opened(tmp_path) as (door, client):
        for path in ("/generate", "/v1/avatar/jobs"):
            answer = await client.post(path, json=MINIMAL, headers=headers)
            assert answer.status_code == 403 and answer.json()["code"] == "local_callers_only"
            assert "INGRESS_API_KEY" in answer.json()["hint"]
        assert (await client.get("/docs", headers=headers)).status_code == 403
        assert door.registry.page(None, 10).jobs == ()


async def test_documentation_needs_the_key_too(tmp_path: Path) -> None:
    async with opened(tmp_path, INGRESS_API_KEY=KEY) as (_, client):
        for path in ("/docs", "/redoc", "/openapi.json", "/nothing"):
            assert (await client.get(path)).status_code == 401
        keyed = {"X-Internal-API-Key": KEY}
        schema = (await client.get("/openapi.json", headers=keyed)).json()
        body = schema["paths"]["/generate"]["post"]["requestBody"]
        named = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert "video_url" in schema["components"]["schemas"][named]["properties"]


async def test_the_workers_token_and_the_callers_key_do_not_get_in_each_others_way(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, INGRESS_API_KEY=KEY, WORKER_TOKEN="token-one") as (_, client):
        refused = await client.get("/v1/preflight")
        assert (refused.status_code, refused.json()["code"]) == (401, "token_missing")
        wrong = await client.get("/v1/ping", headers={"Authorization": "Bearer wrong"})
        assert (wrong.status_code, wrong.json()["code"]) == (403, "token_wrong")
        job = await client.get("/v1/avatar/jobs", headers={"Authorization": "Bearer token-one"})
        assert job.status_code == 403
        job = await client.get("/v1/avatar/jobs", headers={"Authorization": f"Bearer {KEY}"})
        assert job.status_code == 200


# --- links ----------------------------------------------------------------------------------------


async def test_a_finished_video_is_opened_by_its_link_or_the_key_only(tmp_path: Path) -> None:
    """Mend 2.1: with a key set, anybody could fetch `/files/` by an id that callers choose."""
    async with opened(tmp_path, INGRESS_API_KEY=KEY) as (door, client):
        location, keyed = stored(tmp_path), {"X-Internal-API-Key": KEY}
        done = Success(location, {"total_time": 1.0})
        answer = await generated(client, door, done, headers=keyed)
        link = answer.json()["output_url"]
        assert link.startswith(f"{client.base_url}{location}?expires=".replace("//files", "/files"))
        assert (await client.get(location)).status_code == 401
        assert (await client.get(location, headers=keyed)).content == CONTENT
        assert (await client.get(link)).content == CONTENT
        assert (await client.head(link)).headers["content-length"] == str(len(CONTENT))
        part = await client.get(link, headers={"Range": "bytes=3-5"})
        assert (part.status_code, part.content) == (206, CONTENT[3:6])
        # The description beside the video is opened by the same link, another job's is not.
        assert (await client.get(link.replace(".mp4", ".json"))).content == b"{}"
        other = stored(tmp_path, "hello-2")
        assert (await client.get(link.replace(location, other))).status_code == 403
        shown = await client.get("/v1/avatar/jobs/job-123", headers=keyed)
        assert (await client.get(shown.json()["output_url"])).content == CONTENT


async def test_a_wrong_or_expired_link_says_what_to_do(tmp_path: Path) -> None:
    """Mends 2.1 and 2.6."""
    async with opened(tmp_path, INGRESS_API_KEY=KEY) as (door, client):
        location = stored(tmp_path)
        link = door.services.links.for_notifications().link(location)
        query = urlsplit(link).query
        later = parse_qs(query)["expires"][0]
        longer = query.replace(later, str(int(later) + 1))
        for bad in (longer, query[:-1], query + "&signature=x", "signature=x", "signature="):
            refused = await client.get(f"{location}?{bad}")
            assert (refused.status_code, refused.json()["code"]) == (403, "link_wrong"), bad
            assert refused.json()["hint"]
        old = LinkSigner(door.services.links.signer.secret, 60.0, clock=lambda: 1_000_000.0)
        expired = await client.get(f"{location}?{old.query(file_subject('hello-1.mp4'))}")
        assert (expired.status_code, expired.json()["code"]) == (403, "link_expired")
        assert "new link" in expired.json()["hint"]
        keyed = await client.get(f"{location}?{longer}", headers={"X-Internal-API-Key": KEY})
        assert keyed.content == CONTENT


async def test_links_survive_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path, INGRESS_API_KEY=KEY) as (door, _):
        link = urlsplit(door.services.links.for_notifications().link(stored(tmp_path)))
    assert (tmp_path / "state" / "link_secret").stat().st_mode & 0o777 == 0o600
    async with opened(tmp_path, INGRESS_API_KEY=KEY) as (_, client):
        assert (await client.get(f"{link.path}?{link.query}")).content == CONTENT


async def test_links_begin_with_what_the_caller_came_by(tmp_path: Path) -> None:
    """Mend 2.3: they named 127.0.0.1:8000 whatever was bound and whoever asked."""
    async with opened(tmp_path, ALLOW_ANONYMOUS="true") as (door, client):
        done = Success(stored(tmp_path), {"total_time": 1.0})
        await generated(client, door, done)
        path = "/v1/avatar/jobs/job-123"

        async def base(**headers: str) -> str:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            shown = (await client.get(path, headers=named)).json()["output_url"]
            return str(shown.partition("/files/")[0])

        assert await base() == str(client.base_url).rstrip("/")
        assert await base(Host="videos.example:9000") == "http://videos.example:9000"
        assert await base(Host="[::1]:8000") == "http://[::1]:8000"
        # Not from a configured proxy: not believed.
        said = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "evil.example"}
        assert await base(**said) == str(client.base_url).rstrip("/")
        bases = Bases("http://127.0.0.1:8000", trusted_proxies=("127.0.0.0/8",))
        door.change(links=LinkMaker(bases, door.services.links.signer))
        said |= {"X_Forwarded_Prefix": "/lip", "X_Forwarded_For": "198.51.100.7"}
        assert await base(**said) == "https://evil.example/lip"


BASES = Bases("http://127.0.0.1:8123", trusted_proxies=("10.0.0.0/8", "2001:db8::/32"))


@pytest.mark.parametrize(
    ("peer", "headers", "base"),
    [
        ("192.0.2.1", {"host": "a.example"}, "http://a.example"),
        ("192.0.2.1", {"host": "a.example", "x-forwarded-host": "b.example"}, "http://a.example"),
        ("10.1.2.3", {"host": "a", "x-forwarded-host": "b.example"}, "http://b.example"),
        ("::ffff:10.1.2.3", {"host": "a", "x-forwarded-host": "b"}, "http://b"),
        ("2001:db8::7", {"host": "a", "x-forwarded-proto": "https"}, "https://a"),
        ("10.1.2.3", {"host": "a", "x-forwarded-proto": "gopher"}, "http://a"),
        ("10.1.2.3", {"host": "a", "x-forwarded-host": "c, b.example"}, "http://b.example"),
        ("10.1.2.3", {"host": "a", "x-forwarded-prefix": "/x/../"}, "http://a/x/.."),
        ("10.1.2.3", {"host": "a", "x-forwarded-prefix": "//evil.example"}, "http://a"),
        ("192.0.2.1", {}, "http://127.0.0.1:8123"),
        ("192.0.2.1", {"host": "a/b?c"}, "http://127.0.0.1:8123"),
        ("192.0.2.1", {"host": "user@evil"}, "http://127.0.0.1:8123"),
    ],
)
def test_only_configured_proxies_are_believed(
    peer: str, headers: dict[str, str], base: str
) -> None:
    named = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "client": (peer, 50000), "headers": named, "scheme": "http"}
    assert BASES.of(scope) == base
    fixed = Bases("http://127.0.0.1:8123", "https://videos.example/lip/")
    assert fixed.of(scope) == fixed.of() == "https://videos.example/lip"


@pytest.mark.parametrize(
    ("environ", "base"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"LIPSYNC_HOST": "192.0.2.7", "WORKER_PORT": "9000"}, "http://192.0.2.7:9000"),
        ({"LIPSYNC_HOST": "2001:db8::7"}, "http://[2001:db8::7]:8000"),
    ],
)
def test_what_is_sent_unasked_names_what_is_bound(
    environ: dict[str, str], base: str, tmp_path: Path
) -> None:
    """Mend 2.3: it was loopback, also where nothing listens there."""
    args = AppArgs.model_validate({"pools": [{"name": "cpu"}]})
    maker = LinkMaker.of(args, read_environment(environ), tmp_path)
    assert maker.for_notifications().link("/files/a.mp4").startswith(f"{base}/files/a.mp4?expires=")


def test_addresses_of_other_stores_pass_unchanged() -> None:
    links = Links("http://a", LinkSigner(b"s" * 32, 60.0))
    address = "https://f000.backblazeb2.com/file/bucket/avatar/outputs/job-123.mp4"
    assert links.link(address) == address
    done = links.publish(Success("/files/a~b.mp4", {"x": 1}))
    assert isinstance(done, Success)
    assert done.output_url.startswith("http://a/files/a~b.mp4?expires=")
    failed = Failure("unknown_error", "No.", "unknown", "unknown", False, 500)
    assert links.publish(failed) is failed


def test_a_damaged_secret_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "link_secret"
    path.write_bytes(b"short")
    secret = read_secret(path)
    assert len(secret) == 32 and read_secret(path) == secret
    assert [entry.name for entry in tmp_path.iterdir()] == ["link_secret"]


def test_any_query_string_is_judged() -> None:
    signer = LinkSigner(b"s" * 32, 60.0)
    good = signer.query("a.mp4").encode()
    assert signer.check("a.mp4", good) is LinkState.VALID
    for query in (b"", b"expires=1", b"&&&", b"x" * 9000, b"%ff=%ff"):
        assert signer.check("a.mp4", query) is LinkState.ABSENT
    for query in (b"signature=\xff", b"signature=%ff&expires=1", b"signature=x&expires=-1"):
        assert signer.check("a.mp4", query) is LinkState.WRONG


# --- guesses --------------------------------------------------------------------------------------


async def test_guesses_are_limited_and_a_right_key_is_not_locked_out(tmp_path: Path) -> None:
    """Mend 4.4."""
    guesses = GuessLimiter(burst=5, pause_s=1000.0)
    async with opened(tmp_path, guesses=guesses, INGRESS_API_KEY=KEY) as (door, client):
        location = stored(tmp_path)
        seen = []
        for number in range(5):
            wrong = {"X-Internal-API-Key": f"guess-{number}"}
            seen.append((await client.get("/v1/avatar/jobs", headers=wrong)).status_code)
            seen.append((await client.get(f"{location}?expires=9&signature=x")).status_code)
        assert seen == [403] * 5 + [429] * 5
        refused = await client.get(f"{location}?expires=9&signature=x")
        assert refused.json()["code"] == "too_many_guesses" and refused.json()["retryable"] is True
        assert 0 < int(refused.headers["Retry-After"]) <= 2001
        keyed = {"X-Internal-API-Key": KEY}
        assert (await client.get("/v1/avatar/jobs", headers=keyed)).status_code == 200
        link = urlsplit(door.services.links.for_notifications().link(location))
        assert (await client.get(f"{link.path}?{link.query}")).status_code == 200
        assert (await client.get("/v1/avatar/jobs")).status_code == 401  # no guess at all


def test_guesses_come_back_with_time_and_the_table_is_bounded() -> None:
    now = 0.0
    guesses = GuessLimiter(burst=2, pause_s=10.0, peers=3, clock=lambda: now)
    assert [guesses.count("192.0.2.1") for _ in range(3)] == [0.0, 0.0, 10.0]
    now = 10.0
    assert [guesses.count("192.0.2.1") for _ in range(2)] == [0.0, 10.0]
    # One household has a whole /64, and IPv4 has a second spelling.
    assert [guesses.count(f"2001:db8::{n}") for n in range(3)] == [0.0, 0.0, 10.0]
    assert guesses.count("::ffff:192.0.2.1") == 10.0
    for number in range(10):
        guesses.count(f"198.51.100.{number}")
    assert guesses.n_peers == 3


# --- one shape of errors --------------------------------------------------------------------------


async def test_every_error_has_the_one_shape(tmp_path: Path) -> None:
    """Mend 2.6: status, type, sentence, code and hint, whatever refuses the request."""
    async with opened(tmp_path, INGRESS_API_KEY=KEY) as (_, client):
        keyed = {"X-Internal-API-Key": KEY}
        entered = await client.post("/v1/avatar/jobs", json=MINIMAL, headers=keyed)
        assert entered.status_code == 202
        other = MINIMAL | {"video_url": "https://media.example/other.mp4"}
        cases: list[tuple[str, str, dict[str, Any], int, str]] = [
            ("GET", "/v1/avatar/jobs", {"headers": {}}, 401, "key_missing"),
            ("GET", "/v1/avatar/jobs", {"headers": {"X-Internal-API-Key": "x"}}, 403, "key_wrong"),
            ("GET", "/nothing/here", {}, 404, "not_found"),
            ("GET", "/v1/avatar/jobs/none", {}, 404, "job_not_found"),
            ("GET", "/v1/avatar/jobs/none/events", {}, 404, "job_not_found"),
            ("DELETE", "/v1/avatar/jobs/none", {}, 404, "job_not_found"),
            ("GET", "/files/none.mp4", {}, 404, "file_not_found"),
            ("PUT", "/generate", {}, 405, "method_not_allowed"),
            ("POST", "/v1/avatar/jobs", {"json": other}, 409, "job_conflict"),
            ("POST", "/generate", {"json": other}, 409, "job_conflict"),
            ("POST", "/generate", {"content": b"{"}, 422, "invalid_request"),
            ("POST", "/generate", {"json": {"musetalk_job_id": "x"}}, 422, "invalid_request"),
            ("POST", "/v1/avatar/jobs", {"json": MINIMAL | {"resolution": "big"}}, 422,
             "invalid_options"),
            ("POST", "/v1/avatar/preview", {"json": MINIMAL | {"fit": "crop"}}, 422,
             "invalid_request"),
            ("GET", "/v1/avatar/jobs?limit=0", {}, 422, "invalid_request"),
            ("GET", "/v1/avatar/jobs?cursor=x", {}, 422, "invalid_request"),
        ]  # fmt: skip
        for method, path, sent, status, code in cases:
            answer = await client.request(method, path, **{"headers": keyed, **sent})
            body = answer.json()
            assert (answer.status_code, body["code"]) == (status, code), (path, answer.text)
            assert set(body) == SHAPE and body["status"] == "failed", path
            assert body["hint"] and body["error_message"][-1] in ".?", body
            is_media = body["error_type"] == "media_error"
            assert is_media == (code == "invalid_options"), body


async def test_a_full_queue_and_a_crash_have_the_one_shape_too(tmp_path: Path) -> None:
    async with opened(tmp_path, queue=QueueSettings(max_queued_jobs=1)) as (door, client):
        for number in range(2):
            sent = MINIMAL | {"musetalk_job_id": f"full-{number}"}
            answer = await client.post("/v1/avatar/jobs", json=sent)
        assert answer.status_code == 429 and set(answer.json()) == SHAPE
        assert answer.json()["code"] == "queue_full" and answer.headers["Retry-After"]

        @door.app.get("/crash")
        async def crash() -> None:
            raise RuntimeError("something of ours, with /a/path")

        answer = await client.get("/crash")
        assert answer.status_code == 500 and set(answer.json()) == SHAPE
        assert answer.json()["code"] == "internal_error" and "/a/path" not in answer.text


async def test_bad_json_says_where_and_a_missing_content_type_is_named(tmp_path: Path) -> None:
    """Mend 2.6."""
    async with opened(tmp_path) as (_, client):
        json = {"Content-Type": "application/json"}
        answer = await client.post("/generate", content=b'{"a" 1}', headers=json)
        assert "not valid JSON" in answer.json()["error_message"]
        assert "character 5" in answer.json()["error_message"]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await client.post("/generate", content=b'{"a": 1}', headers=form)
        assert answer.status_code == 422 and "Content-Type" in answer.json()["error_message"]
        assert "application/json" in answer.json()["hint"]


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({"aspectRatio": "9:16"}, "`aspect_ratio`"), ({"webhookUrl": "x"}, "`webhook_url`"),
        ({"fit": "crop"}, "`params.fit`"), ({"resoluton": "720p"}, "`resolution`"),
        ({"params": {"resolution": "720p"}}, "`resolution`"), ({"jobId": "x"}, "`musetalk_job_id`"),
        ({"params": {"CRF": 1}}, "`params.crf`"),
    ],
    ids=str,
)  # fmt: skip
async def test_a_misspelt_field_is_refused_with_the_one_that_is_meant(
    tmp_path: Path, sent: dict[str, Any], meant: str
) -> None:
    """Mend 2.5: it was dropped silently."""
    async with opened(tmp_path) as (door, client):
        answer = await client.post("/v1/avatar/jobs", json=MINIMAL | sent)
        assert answer.status_code == 422, answer.text
        assert f"did you mean {meant}?" in answer.json()["error_message"]
        assert door.registry.page(None, 10).jobs == ()


async def test_a_webhook_that_cannot_be_sent_says_what_to_do(tmp_path: Path) -> None:
    """Mend 2.6: the hint was to correct the field."""
    async with opened(tmp_path) as (_, client):
        sent = {**MINIMAL, "webhook_url": "https://hooks.example/x"}
        refused = (await client.post("/v1/avatar/jobs", json=sent)).json()
        assert "WEBHOOK_SECRET" in refused["hint"] and refused["code"] == "invalid_request"
        sent = {**MINIMAL, "metadata": {"who": {"first": "a"}}}
        refused = (await client.post("/v1/avatar/jobs", json=sent)).json()
        assert refused["details"] == {"field": "metadata.who"}


async def test_sizes_are_judged_when_a_job_is_entered(tmp_path: Path) -> None:
    """Mend 2.5: and an odd one says what becomes of it."""
    async with opened(tmp_path) as (_, client):
        for wrong in ({"resolution": "720*9"}, {"aspect_ratio": "9x16"}, {"resolution": "9999p"}):
            for path in ("/v1/avatar/jobs", "/v1/avatar/preview"):
                answer = await client.post(path, json=MINIMAL | wrong)
                assert answer.status_code == 422 and answer.json()["code"] == "invalid_options"
        odd = await client.post("/v1/avatar/jobs", json=MINIMAL | {"resolution": "641x361"})
        assert odd.status_code == 202
        [sentence] = odd.json()["warnings"]
        assert "`641x361`" in sentence and "`640x360`" in sentence


async def test_names_in_errors_are_cut(tmp_path: Path) -> None:
    """Mend 4.3: an unknown key of a megabyte was answered with two."""
    async with opened(tmp_path) as (_, client):
        for sent in (
            {"k" * 60_000: 1},
            {"params": {"k" * 60_000: 1}},
            {"metadata": {"k" * 60_000: 1}},
        ):
            answer = await client.post("/v1/avatar/jobs", json=MINIMAL | sent)
            assert answer.status_code == 422 and len(answer.content) < 1000
        answer = await client.get("/" + "x" * 5000)
        assert answer.status_code == 404 and len(answer.content) < 1000


# --- what answers show ----------------------------------------------------------------------------


async def test_the_older_names_are_at_the_top_and_salads_id_is_kept(tmp_path: Path) -> None:
    """Mend 1.17."""
    async with opened(tmp_path) as (door, client):
        metrics = {"total_time": 1.0, "b2_bucket": "b", "b2_file_name": "a/job-123.mp4"}
        done = Success("https://b2.example/b/a/job-123.mp4", metrics)
        answer = await generated(client, door, done, headers={"Salad-Job-Id": "salad-7"})
        body = answer.json()
        assert (body["b2_bucket"], body["b2_file_name"]) == ("b", "a/job-123.mp4")
        assert body["error"] is None and body["output_url"] == done.output_url
        job = door.registry.get("job-123")
        assert job is not None and job.queue_job_id == "salad-7"


@pytest.mark.parametrize("stack_traces", [False, True])
async def test_stack_traces_are_shown_where_the_configuration_says_so(
    tmp_path: Path, stack_traces: bool
) -> None:
    """Mend 4.10: they hold the paths of an installation."""
    async with opened(tmp_path) as (door, client):
        door.change(options=ApiOptions(stack_traces=stack_traces))
        failed = Failure("processing_error", "It crashed.", "stage_failed", "inference", True, 500,
                         stack_trace="Traceback: /opt/secret/path.py")  # fmt: skip
        answer = await generated(client, door, failed)
        assert answer.status_code == 500
        assert ("stack_trace" in answer.json()) == stack_traces
        assert answer.json()["hint"]
        assert "Traceback" not in (await client.get("/v1/avatar/jobs/job-123")).text


async def test_a_secret_in_a_path_is_not_shown(tmp_path: Path) -> None:
    """Mend 4.10."""
    async with opened(tmp_path) as (_, client):
        sent = MINIMAL | {"video_url": "https://media.example/s3cret-token/x/clip.mp4?sig=1"}
        answer = await client.post("/v1/avatar/jobs", json=sent)
        shown = answer.json()["input"]["video_url"]
        assert shown == "https://media.example/.../clip.mp4"
        assert "s3cret" not in answer.text


# --- the table of codes ---------------------------------------------------------------------------


def kinds(base: type[PipelineError] = PipelineError) -> set[type[PipelineError]]:
    return {base}.union(*(kinds(kind) for kind in base.__subclasses__()))


def test_every_code_has_a_hint_and_is_documented() -> None:
    codes = {kind.code for kind in kinds() if kind.__module__.startswith("musetalk_pipeline")}
    codes |= {CANCELLED.code, ABANDONED.code}
    # What routes and gate reject has one of these codes: mypy checks it.
    assert set(get_args(ErrorCode)) == set(HINTS)
    assert codes - set(HINTS) == set()
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "errors.md").read_text(), re.M))
    assert documented == set(HINTS)


def test_the_start_says_who_may_call() -> None:
    """Mend 4.9."""
    assert "Only this machine may call" in CallerRules().in_words()
    assert "INGRESS_API_KEY" in CallerRules().in_words()
    for rules in (CallerRules("k"), CallerRules(None, "k"), CallerRules(allow_anonymous=True)):
        assert "Only this machine" not in rules.in_words()
