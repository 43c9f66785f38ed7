"""Calls of the client over a real socket: what is sent, what is tried again, what is raised."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Reply, Seen, refusal, reply

from lipsync_client import (
    ApiError,
    BadAnswer,
    Estimate,
    JobFailed,
    LipsyncClient,
    NewJob,
    NotSupported,
    Retries,
    Unreachable,
    Upload,
    WebhookRefused,
    verify_webhook,
)
from lipsync_client.sse import EventParser

VIDEO, AUDIO = "https://h.example/v.mp4", "https://h.example/a.wav"


def job(job_id: str = "a", status: str = "queued", **more: Any) -> dict[str, Any]:
    progress = {"phase": status, "fraction": 0.0, "eta_s": None, "queue_position": 1, "new": 1}
    return {"id": job_id, "status": status, "progress": progress, "a_new_field": 5, **more}


FAILURE = {
    "error_type": "media_error", "code": "no_face", "stage": "validation", "input": "video",
    "details": {}, "retryable": False, "receipt": None, "hint": "Use another video.",
}  # fmt: skip


def test_a_job_is_submitted_with_its_options_its_key_and_a_key_against_doubles(serve, either):
    server = serve(lambda seen: reply(job(), 202))
    made = either(
        server.url, "submit", VIDEO, AUDIO, resolution="720p", params={"crf": 20}, job_id="a",
        metadata={"n": 1},
    )  # fmt: skip
    assert (made.id, made.status, made.progress.queue_position) == ("a", "queued", 1)
    assert made.raw["a_new_field"] == 5
    [seen] = server.seen
    assert seen.json() == {
        "video_url": VIDEO, "audio_url": AUDIO, "resolution": "720p", "params": {"crf": 20},
        "musetalk_job_id": "a", "metadata": {"n": 1},
    }  # fmt: skip
    assert seen.headers["x-internal-api-key"] == "the-key"
    assert len(seen.headers["idempotency-key"]) == 32


@pytest.mark.parametrize(
    "passing",
    [
        refusal(503, "starting", retryable=True, Retry_After="0"),
        refusal(429, "queue_full", retryable=True),
        refusal(500, "internal_error", retryable=True),
        Reply(502, b"<html>Bad gateway</html>"),
        Reply(200, b"", cut_after=-1),
    ],
    ids=["starting", "full", "crash", "proxy", "cut"],
)
def test_what_may_pass_is_tried_again_with_the_same_key_against_doubles(serve, either, passing):
    server = serve(lambda seen: reply(job(), 202))
    server.first = [passing, passing]
    assert either(server.url, "submit", VIDEO, AUDIO).id == "a"
    assert len(server.seen) == 3
    assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 1


def test_an_error_has_the_code_the_hint_and_the_input(serve, either):
    server = serve(lambda seen: refusal(422, "invalid_request"))
    with pytest.raises(ApiError) as raised:
        either(server.url, "submit", VIDEO, AUDIO)
    error = raised.value
    assert (error.status, error.code, error.retryable) == (422, "invalid_request", False)
    assert (error.message, error.hint) == ("It cannot be done.", "Do something else.")
    assert (error.input, error.stage, error.details) == ("video", "validation", {"field": "x"})
    assert len(server.seen) == 1


@pytest.mark.parametrize("is_date", [False, True], ids=["seconds", "date"])
def test_a_wait_that_is_longer_than_the_time_for_retries_is_left_to_the_caller(
    serve, call, is_date
):
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    wait = format_datetime(in_an_hour, usegmt=True) if is_date else "3600"
    server = serve(lambda seen: refusal(429, "queue_full", retryable=True, Retry_After=wait))
    with pytest.raises(ApiError) as raised:
        call(server.url, "get", "a")
    assert raised.value.code == "queue_full"
    assert 3590 < raised.value.retry_after_s <= 3600
    assert len(server.seen) == 1


def test_retries_end(serve, call):
    server = serve(lambda seen: refusal(503, "starting", retryable=True))
    with pytest.raises(ApiError):
        call(server.url, "get", "a", retries=Retries(0.05, 0.05, 0.02, 0.02))
    assert 2 <= len(server.seen) <= 7


def test_a_server_that_does_not_listen_is_unreachable(serve, either):
    with pytest.raises(Unreachable) as raised:
        either("http://127.0.0.1:9", "get", "a", retries=Retries(0.01, 0.01, 0.001, 0.001))
    assert (raised.value.code, raised.value.was_sent) == ("unreachable", False)


def test_a_retry_whose_answer_was_lost_is_not_sent_twice(serve, call):
    """The job may have begun its next run, which a second request would be refused for."""
    server = serve(lambda seen: Reply(cut_after=-1))
    with pytest.raises(Unreachable):
        call(server.url, "retry", "a")
    assert server.lines() == ["POST /v1/avatar/jobs/a/retry"]


def test_an_id_may_contain_anything(serve, call):
    server = serve(lambda seen: reply(job("a/b ?")))
    assert call(server.url, "get", "a/b ?").id == "a/b ?"
    assert server.lines() == ["GET /v1/avatar/jobs/a%2Fb%20%3F"]


def test_a_page_that_is_no_api_is_said_to_be_none(serve, call):
    for answer in (Reply(200, b"<html>"), Reply(404, b"<html>"), reply([1]), reply({"id": 1})):
        server = serve(lambda seen, answer=answer: answer)
        with pytest.raises(BadAnswer):
            call(server.url, "get", "a")


def test_lists_go_on_to_the_next_page_and_stop_at_their_limit(serve, either):
    def page(seen: Seen) -> Reply:
        is_second = "cursor=c%3A1" in seen.path
        names = ("c", "d") if is_second else ("a", "b")
        return reply({"jobs": [job(n) for n in names], "next_cursor": None if is_second else "c:1"})

    server = serve(page)
    assert [one.id for one in either(server.url, "jobs", "queued")] == ["a", "b", "c", "d"]
    assert [one.id for one in either(server.url, "jobs", limit=2)] == ["a", "b"]
    assert server.lines() == [
        "GET /v1/avatar/jobs?status=queued&limit=200",
        "GET /v1/avatar/jobs?status=queued&limit=200&cursor=c%3A1",
        "GET /v1/avatar/jobs?limit=2",
    ]


def test_an_estimate_has_its_fields(serve, call):
    body = {
        "frames": 50, "duration_s": 2.0, "width": 64, "height": 48, "fps": 25.0, "seconds": 9.5,
        "usd": None, "queue_s": 0.0, "basis": {"speeds": "receipts"}, "more": 1,
    }  # fmt: skip
    server = serve(lambda seen: reply(body))
    made = call(server.url, "estimate", VIDEO, AUDIO, metadata={"a": 1}, resolution="64x48")
    assert isinstance(made, Estimate)
    assert (made.seconds, made.basis["speeds"]) == (9.5, "receipts")
    assert server.seen[0].json() == {
        "video_url": VIDEO, "audio_url": AUDIO, "resolution": "64x48",
    }  # fmt: skip


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_without_a_route_is_said_to_lack_it(serve, call, tmp_path, status):
    code = "not_found" if status == 404 else "method_not_allowed"
    server = serve(lambda seen: refusal(status, code))
    file = tmp_path / "v.mp4"
    file.write_bytes(b"x")
    for name, args, what in (
        ("estimate", (VIDEO, AUDIO), "estimates"),
        ("submit_batch", ([NewJob(VIDEO, AUDIO)],), "batches"),
        ("upload", (file,), "uploads"),
        ("submit", (file, AUDIO), "uploads"),
    ):
        with pytest.raises(NotSupported, match=f"does not offer {what}") as raised:
            call(server.url, name, *args)
        assert raised.value.code == "not_supported" and raised.value.hint
    # A job that does not exist is another thing than a route that does not.
    server.script = lambda seen: refusal(404, "job_not_found")
    with pytest.raises(ApiError) as other:
        call(server.url, "get", "a")
    assert other.value.code == "job_not_found"


def test_a_batch_is_submitted_and_followed_to_its_end(serve, call):
    def batch(**counts: int) -> Reply:
        jobs = [{"id": "a", "status": "running", "more": 1}]
        return reply({"id": "b", "status": "running", "counts": counts, "jobs": jobs})

    upload = Upload("u", "upload://u")
    server = serve(lambda seen: batch(succeeded=1, failed=1))
    made = call(
        server.url, "submit_batch", [NewJob(upload, AUDIO), NewJob(VIDEO, AUDIO, resolution="1x1")],
        webhook_url="https://h.example/hook",
    )  # fmt: skip
    assert (made.id, made.jobs[0].id, made.has_ended) == ("b", "a", True)
    assert server.seen[0].json() == {
        "jobs": [
            {"video_url": "upload://u", "audio_url": AUDIO},
            {"video_url": VIDEO, "audio_url": AUDIO, "resolution": "1x1"},
        ],
        "webhook_url": "https://h.example/hook",
    }
    assert call(server.url, "wait_batch", "b").counts == {"succeeded": 1, "failed": 1}
    call(server.url, "cancel_batch", "b")
    assert server.lines()[1:] == ["GET /v1/avatar/batches/b", "DELETE /v1/avatar/batches/b"]


def test_avatars_are_prepared_listed_and_deleted(serve, call):
    avatar = {"id": "1" * 32, "has_video": True, "frames": 50, "video_sha256": "aa"}

    def script(seen: Seen) -> Reply:
        if seen.method == "POST":
            return reply(job("prep"), 202)
        if seen.method == "DELETE":
            return refusal(404, "avatar_not_found")
        return reply({"avatars": [avatar]} if seen.path.endswith("avatars") else avatar)

    server = serve(script)
    assert call(server.url, "prepare_avatar", VIDEO, 2.0, resolution="64x64").id == "prep"
    sent = server.seen[0].json()
    assert sent.pop("musetalk_job_id")
    assert sent == {"video_url": VIDEO, "duration_s": 2.0, "resolution": "64x64"}
    assert [one.frames for one in call(server.url, "avatars")] == [50]
    assert call(server.url, "avatar", "1" * 32).has_video
    assert call(server.url, "delete_avatar", "1" * 32) is None


def test_a_preview_is_a_picture_with_its_box(serve, call):
    headers = {"X-Face-Box": "1,2,30,40", "X-Source-Frame": "7"}
    for sent, faces in (
        (None, ()),
        ("", ()),
        ("5,6,70,80;9,8,17,16", ((5, 6, 70, 80), (9, 8, 17, 16))),
    ):
        more = {} if sent is None else {"X-Faces": sent}
        server = serve(lambda seen, more=more: Reply(200, b"png", headers | more))
        made = call(server.url, "preview", VIDEO, AUDIO)
        assert (made.png, made.face_box, made.source_frame) == (b"png", (1, 2, 30, 40), 7)
        assert made.faces == faces


def test_a_failed_job_says_why(serve, either):
    ended = job(status="failed", error="No face was found.", failure=FAILURE)
    event = f"event: end\ndata: {reply(ended).body.decode()}\n\n".encode()
    stream = Reply(200, event, {"Content-Type": "text/event-stream"})
    server = serve(lambda seen: stream if "events" in seen.path else reply(job()))
    with pytest.raises(JobFailed, match="No face was found") as raised:
        either(server.url, "wait", "a")
    error = raised.value
    assert (error.code, error.hint, error.retryable) == ("no_face", "Use another video.", False)
    assert error.job.failure is not None and error.job.failure.input == "video"


def test_a_job_that_is_followed_never_goes_back(serve, call):
    def at(second: int, fraction: float, **more: str) -> dict[str, object]:
        progress = {"phase": "inferring", "fraction": fraction}
        return (
            job(status="running", progress=progress, updated_at=f"2026-01-01T00:00:0{second}Z")
            | more
        )

    # A new reader gets the changes of phase from the job's beginning, here after its state at 3 s.
    # Those of one moment were stored together.
    sent = [at(1, 0.0), at(2, 0.03), at(3, 0.05), at(3, 0.3), at(4, 0.5)]
    events = [("progress", each) for each in sent] + [("end", at(5, 1.0, status="succeeded"))]
    body = b"".join(
        f"event: {name}\ndata: {reply(each).body.decode()}\n\n".encode() for name, each in events
    )
    stream = Reply(200, body, {"Content-Type": "text/event-stream"})
    server = serve(lambda seen: stream if "events" in seen.path else reply(at(3, 0.3)))
    seen: list[float] = []
    call(server.url, "wait", "a", lambda job: seen.append(job.progress.fraction))
    assert seen == [0.3, 0.3, 0.5, 1.0]


# --- the server and the key -----------------------------------------------------------------------


def test_server_and_key_come_from_the_environment(serve, monkeypatch):
    server = serve(lambda seen: reply(job()))
    monkeypatch.setenv("LIPSYNC_SERVER", f"{server.url}/")
    monkeypatch.setenv("INGRESS_API_KEY", "key-two")
    with LipsyncClient() as client:
        client.get("a")
    monkeypatch.setenv("LIPSYNC_API_KEY", "key-one")
    with LipsyncClient() as client:
        client.get("a")
        assert "key-one" not in repr(client) + repr(vars(client))
    assert [seen.headers["x-internal-api-key"] for seen in server.seen] == ["key-two", "key-one"]


@pytest.mark.parametrize("server", ["h.example", "ftp://h.example", "http://"])
def test_what_is_no_address_of_a_server_is_refused_at_once(server):
    with pytest.raises(ValueError, match="no address of a server"):
        LipsyncClient(server)
    with pytest.raises(ValueError, match="ASCII"):
        LipsyncClient("http://h", "schlüssel")


# --- webhooks -------------------------------------------------------------------------------------

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


def test_a_signed_webhook_is_its_event_and_a_forged_one_is_refused():
    from standardwebhooks import Webhook

    body = reply({"type": "avatar.job.succeeded", "data": job("j", "succeeded")}).body
    now = datetime.now(UTC)
    signature = Webhook(SECRET).sign("msg", now, body.decode())
    headers = {
        "Webhook-Id": "msg",
        "Webhook-Timestamp": str(int(now.timestamp())),
        "Webhook-Signature": signature,
    }
    event = verify_webhook(SECRET, body, headers)
    assert (event.type, event.job.id) == ("avatar.job.succeeded", "j")
    for wrong in (body + b" ", b"\xff", b""):
        with pytest.raises(WebhookRefused):
            verify_webhook(SECRET, wrong, headers)
    for broken in (
        {},
        {**headers, "Webhook-Timestamp": "1"},
        {**headers, "Webhook-Signature": "x"},
    ):
        with pytest.raises(WebhookRefused):
            verify_webhook(SECRET, body, broken)


# --- events ---------------------------------------------------------------------------------------

STREAM = (
    "id: 3\r\nevent: progress\r\ndata: {\"a\": \"ä\"}\r\n\r\n"
    ": a comment\n\n"
    "event: end\ndata: one\ndata:two\n\n"
    "data: cut off"
).encode()  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_found_however_they_are_cut(size: int) -> None:
    parser = EventParser()
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert [(event.name, event.data, event.id) for event in events] == [
        ("progress", '{"a": "ä"}', "3"),
        ("end", "one\ntwo", None),
    ]


def test_an_event_without_end_does_not_fill_the_memory():
    parser = EventParser()
    with pytest.raises(BadAnswer):
        for _ in range(100):
            list(parser.feed(b"data: " + b"x" * 100_000))


def test_the_asynchronous_client_is_made_from_the_other():
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "scripts" / "async_client.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
