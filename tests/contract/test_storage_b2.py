"""Uploads to Backblaze B2: against the vendor's simulator, and over HTTP with injected faults."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_b2
import psutil
import pytest
from b2sdk.v3 import B2Api, B2HttpApiConfig, InMemoryAccountInfo, RawSimulator
from b2sdk.v3.exception import ServiceError
from fake_b2 import FakeB2, refuse

from musetalk_pipeline.errors import Stage, UploadFailed
from serve_app.outputs.b2 import B2Store
from serve_app.outputs.b2_bucket import B2Settings
from serve_app.outputs.store import object_name
from serve_app.telemetry.redact import RedactingFilter
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("no_waits")
SIDECAR = b'{"musetalk_job_id": "job-123"}'
SMALL = 30_000
LARGE = 350_000  # three parts
BUSY = refuse(503, "service_unavailable", "no tomes available")


@pytest.fixture
def b2() -> Iterator[FakeB2]:
    with fake_b2.running() as server:
        yield server


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = _threads()  # of other tests in this process
    yield

    def left() -> set[threading.Thread]:
        return _threads() - before

    until(lambda: not left(), lambda: f"{left()} have not ended")


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if "b2-try" in t.name or "Pool" in t.name}


def settings(b2: FakeB2, **changes: Any) -> B2Settings:
    quick = B2Settings(fake_b2.KEY_ID, fake_b2.APP_KEY, fake_b2.BUCKET, realm=b2.url, try_s=20)
    return replace(quick, **changes)


def video(tmp_path: Path, size_bytes: int) -> Path:
    path = tmp_path / "out.mp4"
    path.write_bytes(os.urandom(size_bytes))
    return path


def assert_stored(b2: FakeB2, path: Path, job_id: str = "job-123") -> None:
    name = f"avatar/outputs/{object_name(job_id)}"
    assert b2.files[f"{name}.mp4"].content == path.read_bytes()
    assert b2.files[f"{name}.mp4"].content_type == "video/mp4"
    assert b2.files[f"{name}.json"].content == SIDECAR
    assert b2.files[f"{name}.json"].content_type == "application/json"
    assert set(b2.files) == {f"{name}.mp4", f"{name}.json"}
    assert b2.unfinished == {}


# --- good days ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [SMALL, fake_b2.PART_BYTES, LARGE])
def test_video_and_sidecar_are_stored(b2: FakeB2, tmp_path: Path, size_bytes: int) -> None:
    path = video(tmp_path, size_bytes)
    store = B2Store(settings(b2))
    store.check()
    stored = store.put("job-123", path, SIDECAR)
    assert_stored(b2, path)
    assert b2.files["avatar/outputs/job-123.mp4"].is_large == (size_bytes == LARGE)
    assert stored.url == "https://f005.example.com/file/clips/avatar/outputs/job-123.mp4"
    assert stored.size_bytes == size_bytes
    assert stored.metrics == {"b2_bucket": "clips", "b2_file_name": "avatar/outputs/job-123.mp4"}
    place = store.place("job-123")
    assert (place.bucket, place.file_name) == (stored.bucket, stored.file_name)
    assert path.exists()


def test_an_output_is_looked_for_by_name(b2: FakeB2, tmp_path: Path) -> None:
    """Mend 1.11: gone only where the service says so; a fault of its says nothing."""
    b2.download_url = b2.url
    store = B2Store(settings(b2))
    assert not store.has("job-123")
    store.put("job-123", video(tmp_path, SMALL), SIDECAR)
    assert store.has("job-123")
    assert not store.has("../job 124")
    b2.files.clear()
    b2.faults["head_file"] = [fake_b2.refuse(403, "access_denied")]
    assert store.has("job-123")
    assert not store.has("job-123")
    assert b2.calls.count("head_file") == 5


def test_the_sidecar_appears_after_the_video(b2: FakeB2, tmp_path: Path) -> None:
    B2Store(settings(b2)).put("job-123", video(tmp_path, LARGE), SIDECAR)
    assert b2.calls.index("b2_finish_large_file") < b2.calls.index("upload_file")


def test_one_login_serves_many_uploads(b2: FakeB2, tmp_path: Path) -> None:
    store = B2Store(settings(b2))
    path = video(tmp_path, SMALL)
    for number in range(5):
        store.put(f"job-{number}", path, SIDECAR)
    assert b2.count("b2_authorize_account") == 1 and b2.count("b2_list_buckets") == 1
    assert len(b2.files) == 10


def test_the_same_job_stored_twice_is_one_output(b2: FakeB2, tmp_path: Path) -> None:
    store = B2Store(settings(b2))
    first = store.put("job-123", video(tmp_path, SMALL), SIDECAR)
    path = video(tmp_path, SMALL)
    assert store.put("job-123", path, SIDECAR).url == first.url
    assert_stored(b2, path)


@pytest.mark.parametrize("job_id", ["../../etc/passwd", "a b$(id);'\"", "x/y", "ü" * 200, "."])
def test_hostile_job_ids_stay_below_the_prefix(b2: FakeB2, tmp_path: Path, job_id: str) -> None:
    path = video(tmp_path, SMALL)
    stored = B2Store(settings(b2)).put(job_id, path, SIDECAR)
    assert_stored(b2, path, job_id)
    assert stored.url.startswith("https://f005.example.com/file/clips/avatar/outputs/")
    assert "/" not in stored.url.removeprefix("https://f005.example.com/file/clips/avatar/outputs/")


def test_another_prefix_and_none(b2: FakeB2, tmp_path: Path) -> None:
    path = video(tmp_path, SMALL)
    B2Store(settings(b2, prefix="/a/b/")).put("job", path, SIDECAR)
    B2Store(settings(b2, prefix="")).put("job", path, SIDECAR)
    assert set(b2.files) == {"a/b/job.mp4", "a/b/job.json", "job.mp4", "job.json"}


def test_uploads_at_once_do_not_disturb_each_other(b2: FakeB2, tmp_path: Path) -> None:
    store = B2Store(settings(b2))
    path = video(tmp_path, LARGE)
    faults: list[Exception] = []

    def put(number: int) -> None:
        try:
            store.put(f"job-{number}", path, SIDECAR)
        except Exception as exc:
            faults.append(exc)

    threads = [threading.Thread(target=put, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults and len(b2.files) == 8 and not b2.unfinished


def test_descriptors_and_threads_stay_flat(b2: FakeB2, tmp_path: Path) -> None:
    """Good, failed and hanging uploads, again and again."""
    path = video(tmp_path, LARGE)
    store = B2Store(settings(b2, try_s=0.5, tries=1))
    process = psutil.Process()

    def round_of_three(number: int) -> None:
        for call, faults in (
            ("upload_part", []),
            ("b2_start_large_file", [BUSY] * 9),
            ("b2_finish_large_file", [fake_b2.hang]),
        ):
            b2.released.clear()
            b2.faults[call] = list(faults)
            with contextlib.suppress(UploadFailed):
                store.put(f"job-{number}", path, SIDECAR)
            b2.faults.clear()

    def left() -> tuple[int, int]:
        b2.released.set()  # the server's side of hanging calls ends, too
        gc.collect()  # exceptions and their frames are cycles
        return process.num_fds(), threading.active_count()

    round_of_three(0)
    before = left()
    for number in range(1, 5):
        round_of_three(number)

    def is_as_before() -> bool:
        files, threads = left()
        return files <= before[0] + 2 and threads <= before[1] + 2

    until(is_as_before, lambda: f"{left()} files and threads have not become {before}", 10)
    assert b2.unfinished == {}


# --- faults that pass -----------------------------------------------------------------------------

PASSING = {
    "busy once": [BUSY],
    "busy twice": [BUSY, BUSY],
    "busy through a whole try": [BUSY, BUSY, BUSY],
    "server error": [refuse(500, "internal_error")],
    "asked to wait an hour": [refuse(503, "busy", Retry_After="3600")],
    "too many requests": [refuse(429, "too_many_requests", Retry_After="3600")],
    "request timeout": [refuse(408, "request_timeout")],
    "cut off in the middle": [fake_b2.cut_off],
    "cut off in the answer": [fake_b2.cut_off_answer],
    "expired token": [fake_b2.expire_tokens],
    "expired upload token": [refuse(401, "expired_auth_token")],
    "bad upload token": [refuse(401, "bad_auth_token")],
    "wrong checksum": [refuse(400, "bad_request", "Sha1 did not match data received")],
    "another checksum stored": [fake_b2.lie_about_sha1],
    "unknown refusal": [refuse(400, "brand_new_code")],
    "not JSON": [lambda handler, _: handler.answer(502, "<html>bad gateway</html>")],
}


@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
@pytest.mark.parametrize("name", PASSING)
def test_passing_faults_of_uploads_are_overcome(
    b2: FakeB2, tmp_path: Path, name: str, size_bytes: int
) -> None:
    path = video(tmp_path, size_bytes)
    b2.faults["upload_file" if size_bytes == SMALL else "upload_part"] += PASSING[name]
    began = time.monotonic()
    B2Store(settings(b2)).put("job-123", path, SIDECAR)
    assert_stored(b2, path)
    assert time.monotonic() - began < 60  # nobody slept the hour


@pytest.mark.parametrize(
    "call",
    [
        "b2_authorize_account",
        "b2_list_buckets",
        "b2_get_upload_url",
        "b2_start_large_file",
        "b2_get_upload_part_url",
        "b2_finish_large_file",
        "b2_list_unfinished_large_files",
    ],
)
@pytest.mark.parametrize("fault", [BUSY, fake_b2.cut_off_answer, fake_b2.expire_tokens])
def test_passing_faults_of_every_call_are_overcome(
    b2: FakeB2, tmp_path: Path, call: str, fault: fake_b2.Fault
) -> None:
    path = video(tmp_path, LARGE)
    b2.faults[call].append(fault)
    B2Store(settings(b2)).put("job-123", path, SIDECAR)
    assert_stored(b2, path)


def test_parts_that_arrived_are_not_sent_again(b2: FakeB2, tmp_path: Path) -> None:
    path = video(tmp_path, LARGE)
    b2.faults["b2_finish_large_file"].append(BUSY)
    B2Store(settings(b2)).put("job-123", path, SIDECAR)
    assert_stored(b2, path)
    assert b2.count("upload_part") == 3 and b2.count("b2_start_large_file") == 1


def test_a_key_that_may_not_list_files_starts_again_and_leaves_nothing(
    b2: FakeB2, tmp_path: Path
) -> None:
    b2.capabilities = ["listBuckets", "writeFiles"]
    path = video(tmp_path, LARGE)
    b2.faults["b2_finish_large_file"].append(BUSY)
    B2Store(settings(b2)).put("job-123", path, SIDECAR)
    assert_stored(b2, path)
    assert b2.count("b2_start_large_file") == 2 and b2.count("b2_cancel_large_file") == 1


# --- faults that stay -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size_bytes", "call"), [(SMALL, "upload_file"), (LARGE, "upload_part")])
@pytest.mark.parametrize("fault", [BUSY, fake_b2.cut_off, fake_b2.lie_about_sha1])
def test_after_three_tries_the_upload_has_failed_and_left_nothing(
    b2: FakeB2, tmp_path: Path, size_bytes: int, call: str, fault: fake_b2.Fault
) -> None:
    b2.faults[call] += [fault] * 1000
    with pytest.raises(UploadFailed, match="Backblaze B2 cannot be reached or answers") as failed:
        B2Store(settings(b2)).put("job-123", video(tmp_path, size_bytes), SIDECAR)
    assert failed.value.retryable and failed.value.stage is Stage.UPLOAD
    assert failed.value.__cause__ is None
    assert b2.files == {} and b2.unfinished == {}
    if size_bytes == SMALL:
        assert 3 <= b2.count("upload_file") <= 6


@pytest.mark.parametrize("fault", [fake_b2.hang, fake_b2.trickle])
@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
def test_a_hanging_upload_ends_at_its_deadline(
    b2: FakeB2, tmp_path: Path, fault: fake_b2.Fault, size_bytes: int
) -> None:
    """The system being replaced hung for ever in an upload without a timeout."""
    b2.faults["upload_file" if size_bytes == SMALL else "upload_part"] += [fault] * 1000
    store = B2Store(settings(b2, try_s=0.4, tries=2))
    began = time.monotonic()
    with pytest.raises(UploadFailed, match=r"did not finish within 0\.4 s"):
        store.put("job-123", video(tmp_path, size_bytes), SIDECAR)
    assert time.monotonic() - began < 20
    assert b2.files == {} and b2.unfinished == {}


def test_a_hang_in_one_try_is_overcome_by_the_next(b2: FakeB2, tmp_path: Path) -> None:
    path = video(tmp_path, LARGE)
    b2.faults["upload_part"].append(fake_b2.hang)
    B2Store(settings(b2, try_s=1.5)).put("job-123", path, SIDECAR)
    assert_stored(b2, path)


def test_a_server_that_is_not_there_fails_the_upload(tmp_path: Path) -> None:
    with fake_b2.running() as gone:
        store = B2Store(settings(gone))
    with pytest.raises(UploadFailed, match="cannot be reached"):
        store.put("job-123", video(tmp_path, SMALL), SIDECAR)


def test_a_full_account_is_not_tried_again(b2: FakeB2, tmp_path: Path) -> None:
    b2.faults["upload_file"] += [refuse(403, "storage_cap_exceeded")] * 10
    with pytest.raises(UploadFailed, match="cap of the Backblaze B2 account"):
        B2Store(settings(b2)).put("job-123", video(tmp_path, SMALL), SIDECAR)
    assert b2.count("upload_file") == 1


def test_a_video_that_is_not_there_fails_the_upload(b2: FakeB2, tmp_path: Path) -> None:
    with pytest.raises(UploadFailed, match="cannot be read"):
        B2Store(settings(b2)).put("job-123", tmp_path / "missing.mp4", SIDECAR)
    assert b2.calls == []


# --- the check at start ---------------------------------------------------------------------------


def test_wrong_settings_are_found_at_start(b2: FakeB2) -> None:
    with pytest.raises(UploadFailed, match="B2_KEY_ID, B2_APP_KEY"):
        B2Store(settings(b2, app_key="wrong-key")).check()
    assert b2.count("b2_authorize_account") == 1
    with pytest.raises(UploadFailed, match="B2_BUCKET_NAME"):
        B2Store(settings(b2, bucket="other")).check()
    b2.name_prefix = "elsewhere/"
    with pytest.raises(UploadFailed, match="B2_PREFIX"):
        B2Store(settings(b2)).check()
    b2.name_prefix = "avatar/"
    B2Store(settings(b2)).check()
    b2.capabilities = ["listBuckets", "readFiles"]
    with pytest.raises(UploadFailed, match="may not write files"):
        B2Store(settings(b2)).check()


def test_the_check_has_a_deadline(b2: FakeB2) -> None:
    b2.faults["b2_authorize_account"] += [fake_b2.hang] * 10
    with pytest.raises(UploadFailed, match="did not finish"):
        B2Store(settings(b2, control_s=0.2, tries=1)).check()


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_failing", [False, True])
@pytest.mark.parametrize("is_filtered", [False, True])
def test_secrets_are_in_no_log_no_error_and_no_repr(
    b2: FakeB2, tmp_path: Path, is_failing: bool, is_filtered: bool
) -> None:
    """Everything that any library logs at DEBUG, through the handlers' filter and without it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    if is_filtered:
        handler.addFilter(RedactingFilter([fake_b2.APP_KEY]))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    if is_failing:
        token_error = "more than one upload using auth token t0ken-9-abc"
        b2.faults["upload_part"] += [
            refuse(400, "auth_token_limit", token_error), fake_b2.expire_tokens, *[BUSY] * 100
        ]  # fmt: skip
    store = B2Store(settings(b2))
    text = f"{store!r} {store._settings!r} {vars(store)!r}"
    try:
        text += repr(store.put("job-123", video(tmp_path, LARGE), SIDECAR))
        assert not is_failing
    except UploadFailed as error:
        assert is_failing
        text += f"{error!r} {error} {error.details} {error.__cause__!r}"
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    if is_filtered:
        text += stream.getvalue()
    else:  # our own lines need no filter
        text += "\n".join(line for line in stream.getvalue().splitlines() if line.startswith("B2 "))
    assert len(b2.all_tokens) > 2
    for secret in {fake_b2.APP_KEY, fake_b2.KEY_ID, *b2.all_tokens}:
        assert secret not in text, secret


# --- the vendor's simulator -----------------------------------------------------------------------


@pytest.fixture
def simulator() -> RawSimulator:
    return RawSimulator()


def simulated(simulator: RawSimulator, **changes: Any) -> B2Store:
    key_id, app_key = simulator.create_account()
    api = B2Api(
        InMemoryAccountInfo(), api_config=B2HttpApiConfig(_raw_api_class=lambda _: simulator)
    )
    api.authorize_account(key_id, app_key)
    api.create_bucket("bucket-one", "allPublic")
    chosen = replace(B2Settings(key_id, app_key, "bucket-one"), **changes)
    return B2Store(chosen, raw_api=lambda _: simulator)


def content(simulator: RawSimulator, name: str) -> bytes:
    bucket = simulator.bucket_name_to_bucket["bucket-one"]
    (file,) = [f for f in bucket.file_id_to_file.values() if f.name == name]
    return bytes(file.data_bytes)


@pytest.mark.parametrize("size_bytes", [100, 50_000])
def test_the_vendors_simulator_stores_the_same(
    simulator: RawSimulator, tmp_path: Path, size_bytes: int
) -> None:
    path = video(tmp_path, size_bytes)
    store = simulated(simulator)
    store.check()
    stored = store.put("job-123", path, SIDECAR)
    assert content(simulator, "avatar/outputs/job-123.mp4") == path.read_bytes()
    assert json.loads(content(simulator, "avatar/outputs/job-123.json"))
    assert stored.url == ("http://download.example.com/file/bucket-one/avatar/outputs/job-123.mp4")


def test_errors_of_the_vendors_simulator_are_overcome(
    simulator: RawSimulator, tmp_path: Path
) -> None:
    path = video(tmp_path, 100)
    store = simulated(simulator)
    simulator.set_upload_errors([ServiceError("503 busy")] * 3)
    store.put("job-123", path, SIDECAR)
    assert content(simulator, "avatar/outputs/job-123.mp4") == path.read_bytes()


def test_an_expired_token_of_the_vendors_simulator_is_renewed(
    simulator: RawSimulator, tmp_path: Path
) -> None:
    path = video(tmp_path, 100)
    store = simulated(simulator)
    store.check()
    simulator.expire_auth_token(simulator.current_token)
    store.put("job-123", path, SIDECAR)
    assert content(simulator, "avatar/outputs/job-123.mp4") == path.read_bytes()


def test_a_wrong_key_of_the_vendors_simulator_is_named(simulator: RawSimulator) -> None:
    with pytest.raises(UploadFailed, match="B2_APP_KEY"):
        simulated(simulator, app_key="wrong-key").check()
