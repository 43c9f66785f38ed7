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


async def test_a_call_counts_until_its_thread_is_free_whether_or_not_its_caller_waits() -> None:
    threads, go_on = StageThreads(1, "stage"), threading.Event()
    working = asyncio.create_task(threads.run(go_on.wait, 30))
    waiting = asyncio.create_task(threads.run(go_on.wait, 30))
    await asyncio.sleep(0)
    assert threads.calls == 2
    working.cancel()
    await asyncio.wait({working})
    assert threads.calls == 2
    go_on.set()
    assert await waiting
    assert threads.calls == 0
