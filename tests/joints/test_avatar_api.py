"""What callers of the avatar API are told, over a real socket, a real registry and real files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musetalk_pipeline.artifacts import (
    AvatarBlock,
    ColourTags,
    Face,
    Picture,
    SourceVideo,
    SpeechAudio,
)
from musetalk_pipeline.avatars.identity import AvatarTools
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import plan_frames
from musetalk_pipeline.stages import OpenJob
from serve_app.avatars.about import BLOCK_SUFFIX
from serve_app.avatars.cache import AvatarCache
from serve_app.avatars.local import LocalAvatars
from tests.joints.job_door import Rig, body, job_door

AVATARS, JOBS = "/v1/avatars", "/v1/avatar/jobs"
ONE, TWO = "1" * 32, "2" * 32
TOOLS = AvatarTools("warp", "2", "mesh", "landmarks", None, "frame")
VIDEO = b"the bytes of a video"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with job_door(tmp_path) as rig:
        yield rig


def keep(folder: Path, avatar_id: str, *, with_video: bool) -> None:
    """Keep a part of an avatar, as jobs do."""
    video = folder / "video.mp4"
    video.write_bytes(VIDEO)
    source = SourceVideo(video, "aa", 20, 640, 480, Fraction(25), 80, 3.2, ColourTags())
    audio = SpeechAudio(Path("p"), Path("t"), "bb", 1000, 51_200, 3.2)
    picture = Picture(320, 240, 320, 240, 0, 0, None, ColourTags())
    job = OpenJob(source, audio, picture, plan_frames(80, 80, Fraction(25)), JobOptions())
    block = job.plan.blocks[1]
    face = Face(np.zeros((68, 2), np.float32), Box(0, 0, 9, 9), 0.5)
    look = np.zeros((len(block), 256, 256, 3), np.uint8)
    masks = np.zeros((len(block), 32768), np.uint8)
    made = AvatarBlock(block, (face,) * len(block), look, masks)
    local = LocalAvatars(folder / "state" / "avatars", 1e9, 1e6, first_to_go=BLOCK_SUFFIX)
    cache = AvatarCache(local, TOOLS)
    assert cache.keep(avatar_id, job, made)
    if with_video:
        assert cache.keep_video(avatar_id, job)


async def test_avatars_are_listed_read_and_deleted(rig: Rig, tmp_path: Path) -> None:
    assert (await rig.client.get(AVATARS)).json() == {"avatars": []}
    keep(tmp_path, ONE, with_video=False)
    keep(tmp_path, TWO, with_video=True)
    listed = (await rig.client.get(AVATARS)).json()["avatars"]
    assert [avatar["id"] for avatar in listed] == [TWO, ONE]
    one = (await rig.client.get(f"{AVATARS}/{ONE}")).json()
    assert one == listed[1]
    assert {name: one[name] for name in ("engine", "width", "height", "fps", "frames")} == {
        "engine": "warp",
        "width": 320,
        "height": 240,
        "fps": 25.0,
        "frames": 80,
    }
    assert (one["prepared_frames"], one["has_video"]) == (30, False)
    assert one["size_bytes"] > 30 * (196_608 + 32_768)
    answer = await rig.client.delete(f"{AVATARS}/{ONE}")
    assert (answer.status_code, answer.json()) == (200, {"detail": "Avatar deleted"})
    for method in ("GET", "DELETE"):
        answer = await rig.client.request(method, f"{AVATARS}/{ONE}")
        assert (answer.status_code, answer.json()["code"]) == (404, "avatar_not_found")
    assert [each["id"] for each in (await rig.client.get(AVATARS)).json()["avatars"]] == [TWO]


async def test_an_avatar_is_prepared_by_a_job_without_sound(rig: Rig) -> None:
    create = {"video_url": "https://h.example/v.mp4", "duration_s": 2.5, "params": {"fit": "crop"}}
    answer = await rig.client.post(AVATARS, json=create)
    told = answer.json()
    assert (answer.status_code, told["status"]) == (202, "queued")
    assert answer.headers["Location"] == f"{JOBS}/{told['id']}"
    assert (await rig.client.get(answer.headers["Location"])).json()["id"] == told["id"]
    await rig.service.run_next()
    [work] = rig.graph.ran
    assert work.request.is_avatar
    assert work.request.audio_url == "silence:2.5"
    assert work.options.frame.fit == "crop"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"video_url": None}, "video_url"),
        ({"video_url": "avatar:" + ONE}, "video_url"),
        ({"duration_s": 0}, "duration_s"),
        ({"duration_s": "long"}, "duration_s"),
        ({"audio_url": "https://h.example/a.wav"}, "audio_url"),
        ({"params": {"crf": 99}}, "params.crf"),
        ({"resolution": "1x1x1"}, "resolution"),
    ],
)
async def test_an_avatar_that_cannot_be_prepared_is_refused(
    rig: Rig, change: dict[str, Any], field: str
) -> None:
    create = {"video_url": "https://h.example/v.mp4", **change}
    answer = await rig.client.post(AVATARS, json=create)
    told = answer.json()
    assert answer.status_code == 422
    assert field in told["error_message"]
    assert told["hint"] and told["error_message"].endswith(".")
    assert (await rig.client.get(JOBS)).json()["jobs"] == []


async def test_a_job_names_an_avatar_in_place_of_a_video(rig: Rig, tmp_path: Path) -> None:
    keep(tmp_path, ONE, with_video=True)
    create = {"avatar_id": ONE, "audio_url": "https://h.example/a.wav"}
    answer = await rig.client.post(JOBS, json=create)
    assert answer.status_code == 202
    assert ONE in answer.json()["input"]["video_url"]
    await rig.service.run_next()
    assert rig.graph.ran[0].request.avatar_id == ONE


@pytest.mark.parametrize("path", [JOBS, "/generate"])
async def test_an_avatar_that_a_job_cannot_use_is_refused(
    rig: Rig, tmp_path: Path, path: str
) -> None:
    keep(tmp_path, TWO, with_video=False)
    for avatar_id, expected in (
        (ONE, (404, "avatar_not_found")),
        (TWO, (409, "avatar_without_video")),
    ):
        create = {"musetalk_job_id": "a", "avatar_id": avatar_id, "audio_url": "https://h/a.wav"}
        answer = await rig.client.post(path, json=create)
        assert (answer.status_code, answer.json()["code"]) == expected
    assert (await rig.client.get(JOBS)).json()["jobs"] == []


@pytest.mark.parametrize(
    ("create", "field"),
    [
        ({"avatar_id": "no-avatar"}, "avatar_id"),
        ({"avatar_id": ONE, "video_url": "https://h/v.mp4"}, "avatar_id"),
        ({}, "video_url"),
        ({"video_url": "silence:3"}, "video_url"),
    ],
)
async def test_a_job_names_exactly_one_source(rig: Rig, create: dict[str, Any], field: str) -> None:
    answer = await rig.client.post(JOBS, json={"audio_url": "https://h/a.wav", **create})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert field in answer.json()["error_message"]


async def test_addresses_of_the_inside_are_not_taken_from_outside(rig: Rig) -> None:
    for name, url in (("audio_url", "silence:3"), ("video_url", "avatar:" + ONE)):
        answer = await rig.client.post("/generate", json=body(**{name: url}))
        assert answer.status_code == 422
        assert name in answer.json()["error_message"]


async def test_a_worker_that_keeps_no_avatars_says_so(rig: Rig) -> None:
    rig.door.change(avatars=None)
    answers = [
        await rig.client.get(AVATARS),
        await rig.client.post(AVATARS, json={"video_url": "https://h.example/v.mp4"}),
        await rig.client.post(JOBS, json={"avatar_id": ONE, "audio_url": "https://h/a.wav"}),
    ]
    assert [(each.status_code, each.json()["code"]) for each in answers] == [
        (409, "avatars_off")
    ] * 3
