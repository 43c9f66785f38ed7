"""What callers of `POST /v1/estimate` are told, over a real socket and a real registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.api.services import ESTIMATES
from tests.joints.job_door import SIZE, Rig, body, job_door

ESTIMATE = "/v1/estimate"
INPUTS = {"video_url": "https://h.example/v.mp4", "audio_url": "https://h.example/a.wav"}
RECEIPT = {
    "frames": 500,
    "wall_s": 100.0,
    "stage_s": {"download": 1.0, "prepare": 10.0, "inference": 50.0, "compose": 5.0},
    "pools": [{"pool": "cpu", "frames": 500, "work_s": 50.0, "idle_s": 5.0, "lost_s": 0.0}],
    "avatar_blocks": {"made": 10, "cached": 0},
}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with job_door(tmp_path) as rig:
        yield rig


async def estimate(rig: Rig, **more: Any) -> dict[str, Any]:
    answer = await rig.client.post(ESTIMATE, json=INPUTS | more)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_the_configured_speed_is_the_basis_before_the_first_job(rig: Rig) -> None:
    made = await estimate(rig, resolution="640x480", params={"crf": 20})
    assert {name: made[name] for name in ("frames", "duration_s", "width", "height", "fps")} == {
        "frames": 250, "duration_s": 10.0, "width": 640, "height": 480, "fps": 25.0,
    }  # fmt: skip
    assert (made["basis"]["speeds"], made["basis"]["jobs"]) == ("configuration", 0)
    assert (made["usd"], made["queue_s"]) == (None, 0.0)
    assert made["seconds"] == 250.0  # a pool draws one frame a second unless it is told otherwise
    [measured] = rig.graph.ran
    assert measured.options.encode.crf == 20
    assert (await rig.client.get("/v1/avatar/jobs")).json()["jobs"] == []


async def test_finished_jobs_are_the_basis_afterwards_and_after_a_restart(tmp_path: Path) -> None:
    async with job_door(tmp_path) as rig:
        rig.graph.metrics = {"receipt": RECEIPT, "width": 640, "height": 480}
        for job_id in "ab":
            await rig.client.post("/v1/avatar/jobs", json=body(job_id))
            await rig.service.run_next()
        before = await estimate(rig)
    assert (before["basis"]["speeds"], before["basis"]["jobs"]) == ("receipts", 2)
    assert before["seconds"] < 100.0
    (tmp_path / "results").rename(tmp_path / "old")
    async with job_door(tmp_path) as rig:
        assert await estimate(rig) == before


async def test_what_there_is_to_do_decides_and_is_in_the_answer(rig: Rig) -> None:
    rig.graph.metrics = {"receipt": RECEIPT, "width": 640, "height": 480}
    await rig.client.post("/v1/avatar/jobs", json=body("a"))
    await rig.service.run_next()
    whole = await estimate(rig)
    rig.graph.size = replace(SIZE, to_draw=100, drawn=40, avatar=100, kept=75, followed=25)
    less = await estimate(rig)
    assert less["basis"]["work"] == {
        "prepared_frames": 25, "kept_frames": 75, "drawn_frames": 40, "followed_frames": 25,
    }  # fmt: skip
    assert less["seconds"] < whole["seconds"] / 2


async def test_jobs_that_wait_are_counted(rig: Rig) -> None:
    for job_id in "abc":
        await rig.client.post("/v1/avatar/jobs", json=body(job_id))
    assert (await estimate(rig))["queue_s"] == 3 * 250.0


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"audio_url": INPUTS["audio_url"]}, "video_url"),
        (INPUTS | {"avatar_id": "1" * 32}, "avatar_id"),
        (INPUTS | {"webhook_url": "https://h"}, "webhook_url"),
        (INPUTS | {"params": {"crf": 99}}, "params.crf"),
        (INPUTS | {"video_url": "silence:"}, "video_url"),
    ],
)
async def test_what_is_no_part_of_a_job_is_refused(
    rig: Rig, sent: dict[str, Any], field: str
) -> None:
    answer = await rig.client.post(ESTIMATE, json=sent)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["details"]["field"] == field
    assert rig.graph.ran == []


async def test_more_estimates_at_once_than_there_are_places_are_told_to_come_back(rig: Rig) -> None:
    rig.graph.holds = True
    held = [asyncio.create_task(estimate(rig)) for _ in range(ESTIMATES)]
    async with asyncio.timeout(30):
        while len(rig.graph.ran) < ESTIMATES:
            await rig.graph.inferring.wait()
            rig.graph.inferring.clear()
    answer = await rig.client.post(ESTIMATE, json=INPUTS)
    assert (answer.status_code, answer.json()["code"]) == (429, "busy")
    assert int(answer.headers["Retry-After"]) > 0
    rig.graph.go_on.set()
    assert [made["frames"] for made in await asyncio.gather(*held)] == [250] * ESTIMATES
