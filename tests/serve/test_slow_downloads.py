"""Servers that send next to nothing hold up their own jobs only. Mend 4.5."""

import asyncio

from tests.hostile.raw_server import Exchange, serve
from tests.waiting import until_async

JOBS_AT_A_TIME = 2  # of the shared application


async def test_slow_downloads_do_not_hold_up_a_good_job(app, clip, speech):
    async def one_byte_a_second(e: Exchange) -> None:
        await e.send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        await e.trickle(1.0)

    good = {"video_url": clip(frames=4).as_uri(), "audio_url": speech(0.2).as_uri()}
    async with serve(one_byte_a_second) as server:
        ids = [f"slow-{number}" for number in range(JOBS_AT_A_TIME)]
        for job_id in ids:
            body = good | {"musetalk_job_id": job_id, "video_url": server.url(f"/{job_id}")}
            created = await asyncio.to_thread(app.client.post, "/v1/avatar/jobs", json=body)
            assert created.status_code == 202
        await until_async(
            lambda: len({exchange.path for exchange in server.exchanges}) == len(ids),
            "the slow downloads have not begun",
            60,
        )
        # They end by themselves after three attempts of a minute each.
        done = await asyncio.to_thread(app.generate, musetalk_job_id="beside-slow-ones", **good)
        assert done.status_code == 200, done.text
        for job_id in ids:
            assert (await asyncio.to_thread(app.job, job_id))["status"] == "running"
            await asyncio.to_thread(app.client.delete, f"/v1/avatar/jobs/{job_id}")
        for job_id in ids:
            await asyncio.to_thread(app.wait_for, job_id, "cancelled")
