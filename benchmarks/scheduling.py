"""What the scheduler alone loses: the jobs of scaling.py over stages that only sleep, without Ray.

    python benchmarks/scheduling.py [--segment-s 2]

The driver, the scheduler and the gates are the application's. All calls are sleeps in one process,
so this needs next to no CPU, and the figures are those of the order in which calls are made. The
ideal is the engines' time divided by their number. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from project import RESULTS

from musetalk_pipeline.cost import StageCost
from tests.unit.stage_rig import Handle, Stages, running

SEGMENT_FRAMES, LONG_FRAMES = 50, 1500  # at 25 frames a second: 2 s and 60 s
ENCODE_SHARE = 0.1  # of the time for drawing a frame
CPU_CALL_S = 0.02  # for a call of the Preprocessor or the Finisher


class SleepingStages(Stages):
    """Stages whose calls take as long as they are configured to."""

    def __init__(self, folder: Path, frame_s: dict[str, float]) -> None:
        self.frame_s = frame_s
        super().__init__(folder, pools=tuple(frame_s), frames=LONG_FRAMES, source=LONG_FRAMES)

    async def prepare(self, opened: Any, block: Any) -> Any:
        await asyncio.sleep(CPU_CALL_S)
        return await super().prepare(opened, block)

    async def compose(self, opened: Any, avatar: Any, drawn: Any) -> Any:
        await asyncio.sleep(CPU_CALL_S)
        return await super().compose(opened, avatar, drawn)

    def generator(self, pool: str) -> Handle:
        async def encode(prepared: Any, options: Any) -> Any:
            costs = await prepared
            frames = costs[0].frames
            seconds = ENCODE_SHARE * frames * self.frame_s[pool]
            await asyncio.sleep(seconds)
            return (*costs, StageCost("encode", seconds, frames))

        async def generate(avatar: Any, speech: Any, segment: Any, options: Any) -> Any:
            await avatar
            costs, frames = await speech, len(segment)
            self.made.append(("generate", pool, frames))
            await asyncio.sleep(frames * self.frame_s[pool])
            return segment, (*costs, StageCost("generate", frames * self.frame_s[pool], frames))

        return Handle(encode=encode, generate=generate)


async def seconds(work: Awaitable[Any]) -> float:
    """Return how long it takes."""
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def measure(folder: Path, segment_s: float) -> dict[str, float]:
    """Do all runs on 8 replicas and in three pools; return the figures."""
    frame_s = segment_s / SEGMENT_FRAMES
    work_s = segment_s * (1 + ENCODE_SHARE)  # of a segment and its block
    stages = SleepingStages(folder / "one", {"gpu": frame_s})
    stages.capacity.follow(running(gpu=8))
    long_s = await seconds(stages.start("long"))
    stages.frames = SEGMENT_FRAMES
    alone_s = await seconds(stages.start("alone"))
    short_s = await seconds(asyncio.wait([stages.start(f"short-{n}") for n in range(16)]))
    stages.frames = LONG_FRAMES
    others = [stages.start(f"other-{n}") for n in range(2)]
    await asyncio.sleep(2 * segment_s)
    stages.frames = SEGMENT_FRAMES
    beside_s = await seconds(stages.start("beside"))
    await asyncio.wait(others)
    return {
        "one_job_8_of_linear": LONG_FRAMES / SEGMENT_FRAMES * work_s / 8 / long_s,
        "short_jobs_8_of_ideal": short_s / (16 * work_s / 8),
        "short_beside_long_of_alone": beside_s / alone_s,
        "pool_shares_error": await shares_error(folder / "three", frame_s),
    }


async def shares_error(folder: Path, frame_s: float) -> float:
    """Return the largest deviation of a pool's frames from its share of the speed."""
    speeds = {"slow": 1, "middle": 2, "fast": 4}
    stages = SleepingStages(folder, {pool: frame_s / speed for pool, speed in speeds.items()})
    stages.capacity.follow(running(slow=1, middle=1, fast=1))
    await stages.start("long")
    frames = {pool: sum(n for p, n in stages.of("generate") if p == pool) for pool in speeds}
    total = sum(speeds.values())
    return max(
        abs(frames[pool] / LONG_FRAMES * total / speed - 1) for pool, speed in speeds.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--segment-s", type=float, default=2.0, help="for drawing one segment")
    parser.add_argument("--out", type=Path, default=RESULTS / "scheduling.json")
    options = parser.parse_args(arguments)
    began, cpu_began = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        figures = asyncio.run(measure(Path(name), options.segment_s))
    document = {
        "segment_s": options.segment_s,
        **{name: round(value, 3) for name, value in figures.items()},
        "wall_s": round(time.monotonic() - began, 1),
        "cpu_s": round(time.process_time() - cpu_began, 2),
    }
    options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
