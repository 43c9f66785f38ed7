"""Files of results: HEAD, ranges and names, at the ingress and through the gate of the proxy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from werkzeug.http import parse_options_header

from serve_app.api.file_names import content_disposition, file_name
from serve_app.contract.outcomes import Phase, Progress, Success
from serve_app.gate.callers import CallerRules
from serve_app.gate.middleware import Gate
from serve_app.outputs.store import object_name
from tests.described import ingress_document
from tests.hostile.edge import PATIENT
from tests.joints.job_door import Door, body, serving

CONTENT = bytes(range(256)) * 8
KEY = "callers-key-one"


@contextlib.asynccontextmanager
async def opened(folder: Path, *, behind_proxy: bool) -> AsyncIterator[tuple[Door, Any]]:
    door = Door(folder, INGRESS_API_KEY=KEY)
    (folder / "results").mkdir(exist_ok=True)
    document = ingress_document()
    gate = Gate(door.app, CallerRules(ingress_api_key=KEY), PATIENT, is_proxy=True)

    async def check(answer: httpx.Response) -> None:
        await answer.aread()
        document.check(answer)

    async with serving(gate if behind_proxy else door.app) as client:
        client.event_hooks["response"] = [check]
        yield door, client
    door.registry.close()


async def finished(door: Door, client: httpx.AsyncClient, folder: Path, **sent: Any) -> str:
    """Finish a job; the link to its video."""
    keyed = {"X-Internal-API-Key": KEY}
    made = await client.post("/v1/avatar/jobs", json=body(**sent), headers=keyed)
    job = door.registry.take(lease_s=60, max_attempts=3)
    assert job is not None
    name = object_name(job.id)
    (folder / "results" / f"{name}.mp4").write_bytes(CONTENT)
    sidecar = json.dumps({"musetalk_job_id": job.id})
    (folder / "results" / f"{name}.json").write_text(sidecar)
    done = Success(f"/files/{name}.mp4", {"total_time": 1.0})
    assert door.registry.finish(job, done, Progress(Phase.COMPLETED, 1.0))
    shown = await client.get(made.headers["Location"], headers=keyed)
    return str(shown.json()["output_url"])


@pytest.mark.parametrize("behind_proxy", [False, True], ids=["ingress", "proxy"])
async def test_a_link_answers_head_and_ranges_and_names_the_file(
    tmp_path: Path, behind_proxy: bool
) -> None:
    async with opened(tmp_path, behind_proxy=behind_proxy) as (door, client):
        link = await finished(door, client, tmp_path, metadata={"name": "Frühling 3/4.mp4"})
        head, whole = await client.head(link), await client.get(link)
        assert (head.status_code, head.content, whole.content) == (200, b"", CONTENT)
        for answer in (head, whole):
            assert answer.headers["content-length"] == str(len(CONTENT))
            assert answer.headers["accept-ranges"] == "bytes"
            assert answer.headers["content-type"] == "video/mp4"
            assert answer.headers["etag"] == head.headers["etag"]
            kind, told = parse_options_header(answer.headers["content-disposition"])
            assert (kind, told["filename"]) == ("inline", "Frühling 3-4.mp4")
        part = await client.get(link, headers={"Range": "bytes=-3"})
        assert (part.status_code, part.content) == (206, CONTENT[-3:])
        assert part.headers["content-range"] == "bytes 2045-2047/2048"
        past = await client.get(link, headers={"Range": "bytes=2048-"})
        assert (past.status_code, past.json()["code"]) == (416, "range_wrong")
        assert past.headers["content-range"] == "bytes */2048"
        for odd in ("bytes=9-2", "lines=1-2", "bytes=x"):
            answer = await client.get(link, headers={"Range": odd})
            assert (answer.status_code, answer.content) == (200, CONTENT)
        saved = await client.get(f"{link}&download=true")
        assert saved.headers["content-disposition"].startswith("attachment; filename=")
        # Without the link, the key is needed, and a link to another file does not open this one.
        bare = link.partition("?")[0]
        assert (await client.get(bare)).status_code == 401
        assert (await client.head(bare)).status_code == 401
        keyed = await client.head(bare, headers={"X-Internal-API-Key": KEY})
        assert keyed.status_code == 200


@pytest.mark.slow
async def test_without_a_name_the_file_has_the_id_of_its_job(tmp_path: Path) -> None:
    async with opened(tmp_path, behind_proxy=False) as (door, client):
        link = await finished(door, client, tmp_path, job_id="kunde 7/größe")
        told = parse_options_header((await client.head(link)).headers["content-disposition"])[1]
        assert told["filename"] == "kunde 7-größe.mp4"
        sidecar = await client.get(link.replace(".mp4", ".json"))
        told = parse_options_header(sidecar.headers["content-disposition"])[1]
        assert told["filename"] == "kunde 7-größe.json"
        door.registry.forget(keep=0)
        told = parse_options_header((await client.head(link)).headers["content-disposition"])[1]
        assert told["filename"] == "kunde 7-größe.mp4"  # the sidecar still names the job


@pytest.mark.parametrize(
    ("job_id", "metadata", "name"),
    [
        ("job-1", None, "job-1.mp4"),
        ("job-1", {"name": "An ad.mp4"}, "An ad.mp4"),
        ("job-1", {"name": "../../etc/passwd"}, "etc-passwd.mp4"),
        ("job-1", {"name": 'a"; filename="b\r\nX: y'}, "a-; filename=-b-X- y.mp4"),
        ("job-1", {"name": "..."}, "job-1.mp4"),
        ("job-1", {"name": 7}, "job-1.mp4"),
        ("///", {}, "video.mp4"),
        ("x" * 300, {}, "x" * 120 + ".mp4"),
    ],
)
def test_names_are_safe_on_every_machine(
    job_id: str, metadata: dict[str, Any] | None, name: str
) -> None:
    assert file_name(job_id, metadata, ".mp4") == name
    header = content_disposition(name, "inline")
    assert header.isascii() and header.isprintable()
    assert parse_options_header(header)[1]["filename"] == name
