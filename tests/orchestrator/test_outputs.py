"""Outputs without keys on the workers: signatures, and the life of an output in a real S3 server.

The tests that need the server are skipped without it (object_store.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.outputs import OutputBucket
from orchestrator.outputs.errors import BucketRefused, BucketUnavailable, OutputMissing
from orchestrator.outputs.signature import Credentials, presign, sign_headers
from tests.orchestrator.object_store import B2, LIMIT_S, moto_server

# The key, the instant and the three signatures are those of Amazon's documentation.
EXAMPLE = Credentials(
    "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1"
)
EXAMPLE_AT = datetime(2013, 5, 24, tzinfo=UTC)
EXAMPLE_HOST = "https://examplebucket.s3.amazonaws.com"
VIDEO, SIDECAR = b"video" * 1000, b'{"musetalk_job_id": "job"}'


# Signatures


def test_an_address_is_signed_as_in_amazons_example():
    url = presign("GET", f"{EXAMPLE_HOST}/test.txt", EXAMPLE, EXAMPLE_AT, expires_s=86400)
    expected = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    assert parse_qs(urlsplit(url).query)["X-Amz-Signature"] == [expected]


def test_requests_are_signed_as_in_amazons_examples():
    get = sign_headers(
        "GET", f"{EXAMPLE_HOST}/test.txt", EXAMPLE, EXAMPLE_AT, headers={"Range": "bytes=0-9"}
    )
    put = sign_headers(
        "PUT",
        f"{EXAMPLE_HOST}/test%24file.text",
        EXAMPLE,
        EXAMPLE_AT,
        headers={
            "Date": "Fri, 24 May 2013 00:00:00 GMT",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
        },
        payload_sha256="44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
    )
    assert get["Authorization"].endswith(
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
    assert put["Authorization"].endswith(
        "Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    )


def test_an_address_is_valid_for_at_most_seven_days():
    for seconds in (0, 7 * 24 * 3600 + 1):
        with pytest.raises(ValueError, match="valid for"):
            presign("PUT", B2.url_of("a"), B2.credentials, EXAMPLE_AT, expires_s=seconds)


# Names and settings


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://s3.eu-central-003.backblazeb2.com/", "eu-central-003"),
        ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
    ],
)
def test_the_region_is_read_from_the_endpoint(endpoint, region):
    assert replace(B2, endpoint=endpoint).credentials.region == region
    assert replace(B2, endpoint=endpoint, region="other").credentials.region == "other"


@pytest.mark.parametrize("wrong", [{"endpoint": "s3.example.com"}, {"bucket": "a/b"}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match="bucket"):
        replace(B2, **wrong)


def test_the_secret_is_in_no_repr():
    assert "secret'" not in repr(B2) + repr(B2.credentials)


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.text("./~%a?#\\ ", max_size=10))
def test_no_job_id_leaves_its_place_or_takes_that_of_another(one, other):
    keys = [B2.published_key(job_id, ".mp4") for job_id in (one, other)]
    attempts = [B2.attempt_key(job_id, 1, ".mp4") for job_id in (one, other)]
    for key in (*keys, *attempts):
        assert re.fullmatch(r"avatar/outputs/(attempts/)?[^/]+(/1)?\.mp4", key)
        assert ".." not in B2.path_of(key).split("/")
        assert not set(B2.path_of(key)) & set("?#\\ ")
    assert (len({*keys, *attempts}) == 4) == (one != other)


async def test_an_attempt_gets_addresses_of_its_own_at_b2():
    bucket = OutputBucket(B2, clock=lambda: EXAMPLE_AT)
    output = bucket.sign_attempt("job-123", 2, valid_s=600)
    video = urlsplit(output.video_put_url)
    assert video.netloc == "s3.us-west-004.backblazeb2.com"
    assert video.path == "/videos/avatar/outputs/attempts/job-123/2.mp4"
    assert urlsplit(output.sidecar_put_url).path.endswith("/job-123/2.json")
    assert "us-west-004" in parse_qs(video.query)["X-Amz-Credential"][0]
    assert output.expires_at == EXAMPLE_AT + timedelta(seconds=600)
    assert "Signature" not in repr(output)
    public = replace(B2, public_base_url="https://f004.backblazeb2.com/file/videos")
    read = OutputBucket(public).read_url("job-123")
    assert read == "https://f004.backblazeb2.com/file/videos/avatar/outputs/job-123.mp4"
    await bucket.close()


# A real server


@pytest.fixture
async def bucket(s3_server) -> AsyncIterator[OutputBucket]:
    """A bucket of a fresh prefix."""
    prefix = f"outputs-{os.urandom(4).hex()}"
    bucket = OutputBucket(replace(B2, endpoint=s3_server, prefix=prefix))
    yield bucket
    await bucket.close()


async def upload(bucket: OutputBucket, job_id: str, attempt: int, video: bytes = VIDEO) -> None:
    """Upload as a worker does, with nothing but the addresses."""
    output = bucket.sign_attempt(job_id, attempt, valid_s=600)
    async with httpx.AsyncClient() as client:
        for url, content in ((output.video_put_url, video), (output.sidecar_put_url, SIDECAR)):
            answer = await client.put(url, content=content, headers=dict(output.headers))
            assert answer.status_code == 200


async def read(url: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(url)


async def test_an_accepted_attempt_is_published_and_its_uploads_are_removed(bucket):
    await upload(bucket, "job-1", 1)
    url = await bucket.publish("job-1", 1, len(VIDEO))
    await bucket.discard("job-1", 1)
    answer = await read(url)
    assert (answer.content, answer.headers["content-type"]) == (VIDEO, "video/mp4")
    await bucket.discard("job-1", 1)  # again
    assert await bucket.publish("job-1", 1, len(VIDEO))  # as after a crash between the two
    with pytest.raises(OutputMissing):
        await bucket.publish("job-1", 1, len(VIDEO) + 1)


async def test_a_late_attempt_cannot_change_what_is_published(bucket):
    late = bucket.sign_attempt("job-2", 1, valid_s=600)
    await upload(bucket, "job-2", 2)
    url = await bucket.publish("job-2", 2, len(VIDEO))
    async with httpx.AsyncClient() as client:
        assert (await client.put(late.video_put_url, content=b"late")).status_code == 200
    assert (await read(url)).content == VIDEO


async def test_an_attempt_that_has_not_uploaded_what_it_reports_is_not_published(bucket):
    with pytest.raises(OutputMissing, match="has not uploaded its video"):
        await bucket.publish("job-3", 1, len(VIDEO))
    await upload(bucket, "job-3", 1, video=b"half")
    with pytest.raises(OutputMissing, match=f"reports a video of {len(VIDEO)} bytes"):
        await bucket.publish("job-3", 1, len(VIDEO))
    assert (await read(bucket.read_url("job-3"))).status_code == 404


async def test_a_job_id_of_any_kind_can_be_published(bucket):
    job_id = "../ä b?c#d%2F"
    await upload(bucket, job_id, 1)
    assert (await read(await bucket.publish(job_id, 1, len(VIDEO)))).content == VIDEO


SIGN = """
import json, sys
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
login = Credentials("key", "secret")
query = AWSRequest("PUT", sys.argv[1])
S3SigV4QueryAuth(login, "s3", "us-west-004", expires=600).add_auth(query)
copy = AWSRequest("PUT", sys.argv[1], headers=json.loads(sys.argv[2]))
S3SigV4Auth(login, "s3", "us-west-004").add_auth(copy)
print(json.dumps([query.url, dict(copy.headers)]))
"""


def test_signatures_are_those_of_botocore():
    command = moto_server()
    if command is None:
        pytest.skip("botocore comes with moto, which is not installed")
    url = B2.url_of(B2.attempt_key("job ~ä", 1, ".mp4"))
    headers = {"x-amz-copy-source": "/videos/a~b", "content-type": "video/mp4"}
    words = [Path(command).with_name("python"), "-c", SIGN, url, json.dumps(headers)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
    if "No module named 'botocore'" in done.stderr:
        pytest.skip("the Python beside moto's server has no botocore")
    assert done.returncode == 0, done.stderr
    signed_url, signed = json.loads(done.stdout)
    stamp = parse_qs(urlsplit(signed_url).query)["X-Amz-Date"][0]
    at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    own = presign("PUT", url, B2.credentials, at, expires_s=600)
    assert parse_qs(urlsplit(own).query) == parse_qs(urlsplit(signed_url).query)
    at = datetime.strptime(signed["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    ours = sign_headers(
        "PUT",
        url,
        B2.credentials,
        at,
        headers=headers,
        payload_sha256=signed["X-Amz-Content-SHA256"],
    )
    assert ours["Authorization"].rpartition("=")[2] == signed["Authorization"].rpartition("=")[2]


# Trouble


async def answering(*statuses: int) -> tuple[asyncio.Server, str, list[int]]:
    """Start a server that answers each request with the next status, the last one for ever."""
    left, answered = list(statuses), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status = left.pop(0) if len(left) > 1 else left[0]
        answered.append(status)
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
        )
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", answered


@pytest.mark.parametrize(
    ("statuses", "error", "calls"),
    [
        ((503, 500, 404), None, 4),
        ((503,), BucketUnavailable, None),
        ((403,), BucketRefused, 1),
    ],
)
async def test_a_busy_store_is_called_again_and_a_refusal_is_final(
    no_waits, statuses, error, calls
):
    server, address, answered = await answering(*statuses)
    bucket = OutputBucket(replace(B2, endpoint=address))
    if error is None:
        await bucket.discard("job", 1)
    else:
        with pytest.raises(error) as caught:
            await bucket.discard("job", 1)
        assert address not in str(caught.value)
    assert len(answered) == calls if calls else len(answered) > 1
    await bucket.close()
    server.close()
    await server.wait_closed()
