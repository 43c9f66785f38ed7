"""Stages as the driver calls them, without Ray: handles whose calls are coroutines here.

`Stages` answers every call of a whole job. A test holds calls by name, or makes them fail.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from musetalk_pipeline.artifacts import ColourTags, Picture, Piece
from musetalk_pipeline.cost import Measured, StageCost, StageName
from musetalk_pipeline.errors import StageFailed
from musetalk_pipeline.job_media import Digests
from musetalk_pipeline.options import JobOptions
from musetalk_pipeline.plan import Block, FrameOrder, Segment, plan_order
from musetalk_pipeline.receipts.cost_sum import JobWork
from serve_app.config.settings import AppArgs, DriverSettings
from serve_app.contract.requests import JobRequest
from serve_app.graph.capacity import SharedCapacity
from serve_app.graph.driver import JobDriver
from serve_app.graph.job_segments import SegmentMakers
from serve_app.graph.job_stream import JobStreams
from serve_app.graph.left_nodes import LeftNodes
from serve_app.graph.pieces import PieceFiles
from serve_app.graph.pools import Graph, Pool
from serve_app.graph.scratch import Scratch
from serve_app.graph.serve_controller import ReplicaCounts
from serve_app.graph.stage_calls import DEFAULT_PAUSES, DriverPauses, StageCalls
from serve_app.graph.transfers import Assignment, Attempt, Finished, Opened
from serve_app.streams.streams import Streams

Method = Callable[..., Awaitable[Any]]
FPS = Fraction(25)
PICTURE = Picture(640, 480, 640, 480, 0, 0, None, ColourTags())
AT_ONCE = DriverPauses(retry_s=(0.0,))


class Handle:
    """A deployment as the driver calls it, `handle.method.remote(...)`, run by functions here."""

    def __init__(self, **methods: Method) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        method = self._methods[name]

        class Remote:
            def remote(self, *args: Any) -> Any:
                return asyncio.ensure_future(method(*args))

        return Remote()

    def broadcast(self, name: str, *args: Any) -> Any:
        """Call a method of every replica; a test has one."""
        method = self._methods[name]

        class Answers:
            async def results_async(self, *, return_exceptions: bool) -> list[Any]:
                call = asyncio.ensure_future(method(*args))
                return await asyncio.gather(call, return_exceptions=return_exceptions)

        return Answers()


async def exists(response: Any) -> None:
    """Wait for a call of a `Handle`; one that failed has a result as well."""
    await asyncio.wait({response})


async def is_lost(results: Sequence[Any]) -> None:
    """Wait for ever, as nothing is lost here."""
    await asyncio.Event().wait()


def driver_of(
    graph: Graph,
    folder: Path,
    *,
    args: AppArgs | None = None,
    places: int = 1,
    pauses: DriverPauses = DEFAULT_PAUSES,
    left_nodes: LeftNodes | None = None,
    streams: Streams | None = None,
) -> tuple[JobDriver, SharedCapacity]:
    """Return a driver over `graph`, and what its jobs share."""
    args = args or AppArgs.model_validate({"pools": [{"name": "cpu"}]})
    capacity = SharedCapacity(args)
    pieces = PieceFiles(Scratch(folder / "scratch", 3600.0), share=lambda data: data)
    calls = StageCalls(args.driver, pauses, exists, is_lost)
    makers = SegmentMakers(graph, args.driver, capacity, calls, pieces)
    made = None if streams is None else JobStreams(streams, graph.finisher, calls, 60.0)
    driver = JobDriver(
        makers,
        60.0,
        lambda: None,  # type: ignore[arg-type, return-value]
        places,
        left_nodes=left_nodes,
        streams=made,
    )
    return driver, capacity


def running(**replicas: int) -> ReplicaCounts:
    """Return counts with these replicas of pools, and one of each other stage."""
    counts = {f"Generator-{pool}": number for pool, number in replicas.items()}
    return ReplicaCounts({"Preprocessor": 1, "Finisher": 1, **counts}, {}, {}, {})


class Stages:
    """All stages of a job of `frames` frames, at 25 frames a second in blocks of 2 s.

    `drawn`: the only output frames that draw; None: all. `holds`: names of calls that wait until
    `go_on` is set. `trouble`: raises for a call, if it is to fail, given its name and its pool.
    `made`: the calls that were begun, in order: name, pool, first frame.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pools: tuple[str, ...] = ("cpu",),
        frames: int = 500,
        source: int = 1000,
        driver: DriverSettings | None = None,
        left_nodes: LeftNodes | None = None,
        drawn: tuple[range, ...] | None = None,
        streams: Streams | None = None,
    ) -> None:
        self.frames, self.source, self.drawn = frames, source, drawn
        self.holds: set[str] = set()
        self.go_on = asyncio.Event()
        self.trouble: Callable[[str, str], None] = lambda name, pool: None
        self.made: list[tuple[str, str, int]] = []
        self.at_once: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.seconds_per_frame = dict.fromkeys(pools, 0.1)
        self.finished: list[tuple[int, int]] = []  # the frames of each piece that was joined
        self.work: JobWork | None = None  # of the last job that was finished
        cpu = Handle(
            fetch=self.fetch, open=self.open, prepare=self.prepare, release=self.release,
            encode_audio=self.encode_audio, compose=self.compose, finish=self.finish,
            compose_source=self.compose_source,
            sound=self.sound,
        )  # fmt: skip
        self.graph = Graph(cpu, tuple(Pool(name, self.generator(name)) for name in pools), cpu)
        args = AppArgs(
            pools=[{"name": name} for name in pools],  # type: ignore[list-item]
            driver=driver or DriverSettings(),
        )
        self.driver, self.capacity = driver_of(
            self.graph,
            folder,
            args=args,
            places=8,
            pauses=AT_ONCE,
            left_nodes=left_nodes,
            streams=streams,
        )

    def start(self, job_id: str = "a", report: Callable[..., None] = lambda _: None) -> Any:
        """Begin a job."""
        request = JobRequest(musetalk_job_id=job_id, video_url="https://h/v", audio_url="h")
        attempt_id = job_id.encode().hex().zfill(32)
        work = Assignment(attempt_id, None, job_id, 1, request, JobOptions())
        return asyncio.create_task(self.driver.run(work, report))

    def of(self, name: str) -> list[tuple[str, int]]:
        """Return the pools and first frames of the calls with that name."""
        return [(pool, frame) for call, pool, frame in self.made if call == name]

    async def fetch(self, attempt: Attempt) -> Measured[Digests]:
        return Measured(Digests("a", "b"), (StageCost("download", 1.0, 0),))

    async def open(self, attempt: Attempt, fetched: Any) -> Measured[Opened]:
        order = FrameOrder("bounce", 0, self.source, self.frames)
        plan = plan_order(order, FPS, drawn=self.drawn)
        job: Any = SimpleNamespace(plan=plan, options=attempt.options, picture=PICTURE)
        return Measured(Opened(attempt, "node", job), (StageCost("validation", 0.1, 0),))

    async def prepare(self, opened: Opened, block: Block) -> Any:
        await self._call("prepare", "", block.start)
        return (StageCost("prepare", 0.1, len(block)),)

    async def encode_audio(self, opened: Opened, segment: Segment) -> Any:
        await self._call("encode_audio", "", segment.start)
        return (StageCost("listen", 0.1, len(segment)),)

    async def compose(self, opened: Opened, avatar: Any, drawn: Any) -> Measured[Piece]:
        segment, costs = await drawn
        await self._call("compose", "", segment.start)
        data = np.frombuffer(f"{segment.start}-{segment.end}".encode(), np.uint8)
        piece = Piece(segment, data, len(segment))
        own = StageCost("compose", 0.1, len(segment))
        return Measured(piece, (*await avatar, *costs, own))

    async def compose_source(self, opened: Opened, segment: Segment) -> Measured[Piece]:
        await self._call("compose_source", "", segment.start)
        data = np.frombuffer(f"{segment.start}-{segment.end}".encode(), np.uint8)
        own = StageCost("compose", 0.1, len(segment))
        return Measured(Piece(segment, data, 0), (own,))

    async def sound(self, opened: Opened) -> Any:
        raise StageFailed("These jobs have no sound.")

    async def finish(self, opened: Opened, facts: Any, about: Any, pieces: list[Any]) -> Finished:
        texts = [piece.tobytes().decode().split("-") for piece in pieces]
        self.finished = [(int(start), int(end)) for start, end in texts]
        self.work = facts.work
        return Finished("there", {"stage_times": facts.work.stage_seconds})

    async def release(self, attempt_id: str) -> None:
        return None

    def generator(self, pool: str) -> Handle:
        async def encode(prepared: Any, options: Any) -> Any:
            costs = await prepared
            frames = costs[0].frames
            await self._call("encode", pool, 0)
            return (*costs, self._of_engine("encode", pool, frames))

        async def generate(avatar: Any, speech: Any, segment: Segment, options: Any) -> Any:
            await avatar
            costs = await speech
            await self._call("generate", pool, segment.start)
            return segment, (*costs, self._of_engine("generate", pool, len(segment)))

        return Handle(encode=encode, generate=generate)

    def _of_engine(self, stage: StageName, pool: str, frames: int) -> StageCost:
        seconds = frames * self.seconds_per_frame[pool]
        return StageCost(stage, seconds, frames, replica=pool, pool=pool, gpu_class=pool.upper())

    async def _call(self, name: str, pool: str, frame: int) -> None:
        self.made.append((name, pool, frame))
        self.at_once[name] += 1
        self.most_at_once[name] = max(self.most_at_once[name], self.at_once[name])
        try:
            self.trouble(name, pool)
            await asyncio.sleep(0)
            if name in self.holds:
                await self.go_on.wait()
        finally:
            self.at_once[name] -= 1


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(200):
        await asyncio.sleep(0)
