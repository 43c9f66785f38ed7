"""Blocking work off the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

from serve_app.graph.stage_threads import StageThreads

LOSES_THE_GPU = """
import asyncio
from musetalk_pipeline.errors import GpuLost, StageFailed
from serve_app.graph.stage_threads import StageThreads

def fail(error):
    raise error

async def main():
    threads = StageThreads(1, "engine")
    try:
        await threads.run(fail, StageFailed("an ordinary fault"))
    except StageFailed:
        print("lives on", flush=True)
    try:
        await threads.run_cancellable(lambda check: fail(GpuLost("the decoder failed on cuda:0")))
    finally:
        print("still here", flush=True)

asyncio.run(main())
"""


def test_a_process_that_lost_its_gpu_ends_so_that_serve_starts_another() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSES_THE_GPU], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == "lives on\n"
    assert "the GPU is lost" in done.stderr


async def test_a_call_that_waits_for_the_only_thread_says_how_long() -> None:
    threads, may_end, begun = StageThreads(1, "engine"), threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        may_end.wait(60)

    first = asyncio.create_task(threads.measured("encode", 50, lambda check: hold()))
    await asyncio.to_thread(begun.wait, 60)
    second = asyncio.create_task(threads.measured("generate", 50, lambda check: None))
    await asyncio.sleep(0)  # it begins to wait
    may_end.set()
    ahead, behind = (await first).own, (await second).own
    assert (ahead.stage, behind.stage) == ("encode", "generate")
    asked_at = behind.began - behind.waited_s
    assert ahead.began < asked_at < ahead.began + ahead.seconds < behind.began
