"""Blocking work off the event loop."""

from __future__ import annotations

import subprocess
import sys

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
