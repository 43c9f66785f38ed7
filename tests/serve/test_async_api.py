"""The asynchronous API: entering, following, listing, cancelling, refusing."""

import base64
import contextlib
import secrets
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from standardwebhooks import Webhook

from serve_app.launcher.machine import has_ipv6
from tests.orchestrator.reverse_proxy import reverse_proxy
from tests.playing import played
from tests.serve.running import JOB_S, running_app
from tests.waiting import until

KEY, SECRET = "internal-key", "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, private_temp):
    """An application with keys, a tiny queue and webhooks."""
    env = {"WEBHOOK_SECRET": SECRET, "WORKER_TOKEN": "worker-token", "BUILD_COMMIT": "abc"}
    # Nothing is fetched ahead, so that what waits is `queued` and counts.
    queue = {"max_concurrent_jobs": 1, "max_queued_jobs": 2, "downloads_ahead": 0}
    folder, links = tmp_path_factory.mktemp("guarded"), {"trusted_proxies": ["127.0.0.1", "::1"]}
    with running_app(folder, env=env, key=KEY, host="::", queue=queue, links=links) as app:
        yield app


@pytest.fixture
def media(clip, speech):
    return {"video_url": clip().as_uri(), "audio_url": speech(0.6).as_uri()}


@pytest.fixture
def long_media(clip, speech):
    return {"video_url": clip(frames=100).as_uri(), "audio_url": speech(60.0).as_uri()}


def create(app, body, **headers):
    return app.client.post("/v1/avatar/jobs", json=body, headers=headers)


def stranger(app, method, path, **request):
    """Call without the key that the application's own client sends."""
    url = app.client.base_url.join(path)
    return httpx.request(method, url, trust_env=False, timeout=60.0, **request)


def test_a_job_is_accepted_and_ends(guarded, media):
    created = create(guarded, media | {"metadata": {"who": "me"}})
    body = created.json()
    assert created.status_code == 202
    assert {k: body[k] for k in ("status", "output_url", "metrics", "error")} == {
        "status": "queued", "output_url": None, "metrics": None, "error": None,
    }  # fmt: skip
    assert created.headers["location"] == f"/v1/avatar/jobs/{body['id']}"
    done = guarded.wait_for(body["id"], "succeeded")
    assert done["metadata"] == {"who": "me"}
    # The folders of an address may hold secrets: only host and last element are shown.
    assert done["input"]["video_url"] == f"file:///.../{media['video_url'].rpartition('/')[2]}"
    assert guarded.client.get(done["output_url"]).status_code == 200


def test_the_same_idempotency_key_gives_the_same_job(guarded, media):
    first = create(guarded, media, **{"Idempotency-Key": "k1"}).json()
    second = create(guarded, media, **{"Idempotency-Key": "k1"}).json()
    assert first["id"] == second["id"]
    other = create(guarded, media | {"resolution": "100p"}, **{"Idempotency-Key": "k1"})
    assert other.status_code == 409
    guarded.wait_for(first["id"], "succeeded")


def test_without_the_key_nothing_is_told(guarded, media):
    for method, path in (
        ("POST", "/generate"), ("POST", "/v1/avatar/jobs"), ("GET", "/v1/avatar/jobs"),
        ("GET", "/v1/avatar/jobs/x"), ("DELETE", "/v1/avatar/jobs/x"),
        ("GET", "/v1/avatar/jobs/x/events"),
    ):  # fmt: skip
        body = {"musetalk_job_id": "x", **media} if method == "POST" else None
        absent = stranger(guarded, method, path, json=body)
        wrong = guarded.client.request(method, path, json=body, headers={"X-Internal-API-Key": "n"})
        assert (absent.status_code, wrong.status_code) == (401, 403), path
    assert stranger(guarded, "GET", "/hc").status_code == 200


def test_ping_and_preflight_need_the_worker_token(guarded):
    for path in ("/v1/ping", "/v1/preflight"):
        assert stranger(guarded, "GET", path).status_code == 401
        wrong = {"Authorization": "Bearer nope"}
        assert stranger(guarded, "GET", path, headers=wrong).status_code == 403
        assert guarded.client.get(path).status_code == 200  # the callers' key opens them too
    right = {"Authorization": "Bearer worker-token"}
    ping = stranger(guarded, "GET", "/v1/ping", headers=right).json()
    assert ping == {
        "status": "ok", "version": ping["version"], "gpu": False, "activeJobs": 0,
        "maxConcurrentJobs": 1, "buildCommit": "abc", "buildTime": "unknown",
        "imageDigest": "unknown",
    }  # fmt: skip
    preflight = stranger(guarded, "GET", "/v1/preflight", headers=right).json()
    assert preflight["status"] == "ok", preflight
    assert preflight["checks"]["preprocessor/ffmpeg"] == "ok"
    assert preflight["checks"]["finisher/storage-local"] == "ok"


def test_a_running_job_and_a_waiting_one_are_cancelled(guarded, media, long_media):
    running = create(guarded, long_media).json()["id"]
    guarded.wait_for(running, "running")
    waiting = create(guarded, media).json()["id"]
    answer = guarded.client.delete(f"/v1/avatar/jobs/{waiting}")
    assert (answer.status_code, answer.json()) == (200, {"detail": "Cancellation requested"})
    assert guarded.job(waiting)["status"] == "cancelled"
    guarded.client.delete(f"/v1/avatar/jobs/{running}")
    guarded.wait_for(running, "cancelled")
    assert guarded.client.delete("/v1/avatar/jobs/unknown").status_code == 404


def test_a_full_queue_asks_to_come_back(guarded, long_media):
    ids = [create(guarded, long_media).json()["id"]]
    guarded.wait_for(ids[0], "running")
    ids += [create(guarded, long_media).json()["id"] for _ in range(2)]
    refused = create(guarded, long_media)
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    for job_id in reversed(ids):
        guarded.client.delete(f"/v1/avatar/jobs/{job_id}")
    for job_id in ids:
        guarded.wait_for(job_id, "cancelled")


def test_lists_are_paged_and_filtered(guarded, media):
    ids = []
    for _ in range(3):
        ids.append(create(guarded, media).json()["id"])
        guarded.wait_for(ids[-1], "succeeded")
    seen, cursor = [], None
    while True:
        params = {"limit": 2, "status": "succeeded"} | ({"cursor": cursor} if cursor else {})
        page = guarded.client.get("/v1/avatar/jobs", params=params).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen[:3] == ids[::-1]
    assert len(seen) == len(set(seen))
    assert guarded.client.get("/v1/avatar/jobs", params={"limit": 0}).status_code == 422


def test_a_webhook_tells_of_the_end_and_is_signed(guarded, media):
    with listener() as (url, received, came):
        job_id = create(guarded, media | {"webhook_url": url}).json()["id"]
        assert came.wait(60)
    headers, body = received[0]
    event = Webhook(SECRET).verify(body, headers)
    assert event["type"] == "avatar.job.succeeded"
    assert (event["data"]["id"], event["data"]["status"]) == (job_id, "succeeded")


def test_a_webhook_to_a_private_address_is_refused(guarded, media):
    body = media | {"webhook_url": "http://10.0.0.1/hook"}
    refused = create(guarded, body)
    assert (refused.status_code, refused.json()["details"]) == (422, {"field": "webhook_url"})


@contextlib.contextmanager
def listener():
    """A webhook target: its address, what it received, and an event set by the first."""
    received, came = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append((dict(self.headers), body))
            self.send_response(204)
            self.end_headers()
            came.set()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", received, came
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_links_alone_lead_to_a_stream_and_its_video_over_ipv6_and_through_a_proxy(
    guarded, clip, speech
):
    media = {"video_url": clip(frames=60).as_uri(), "audio_url": speech(6.0).as_uri()}
    created = create(guarded, media | {"musetalk_job_id": "show 1/part?2 100%"})
    path, here = created.headers["location"], f"http://[::1]:{guarded.port}"
    assert path == "/v1/avatar/jobs/show%201%2Fpart%3F2%20100%25"
    with reverse_proxy(here, "::1", "/video/lipsync", "http") as front:

        def shown_at(base):
            return httpx.get(base + path, headers=guarded.client.headers, trust_env=False).json()

        link = until(lambda: shown_at(front)["stream_url"], "it cannot be watched", JOB_S)
        assert link.startswith(f"{front}{path}/stream.m3u8?")
        bare = httpx.get(link.partition("?")[0], trust_env=False)
        assert (bare.status_code, bare.json()["code"]) == (401, "key_missing")
        seen = played(link)  # from the middle of the job to its end
        assert len(seen) == 150
        until(lambda: shown_at(here)["status"] == "succeeded", "the job has not ended")
        for base in (front, here):
            job = shown_at(base)
            assert job["stream_url"].startswith(base) and job["output_url"].startswith(base)
            assert played(job["stream_url"]) == played(job["output_url"]) == seen
