"""Frames per second of the whole MuseTalk engine, alone, in calls of a segment's size.

    python benchmarks/engine_gpu.py --models DIR [--device cuda] [--frames 50] [--setting NAME ...]

Each setting loads the engine, warms it up, and then times `generate` (UNet and decoder) and
`encode` (VAE encoder, face parser, masks) over random frames. `share` is the part of the wall time
that passes inside the networks, by CUDA events. A setting is written speedup:batch size; `auto` is
the batch size that the engine chooses, and only there every batch shape is warmed up, as a replica
does before its first job. Prints one line a setting and one JSON object as the last line; `--out`
writes that object after each setting. `benchmarks/random_weights.py` makes weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import project  # noqa: F401
import torch
from networks import describe, time_limit

from musetalk_pipeline.artifacts import AvatarBlock, Face, PreparedBlock, Speech
from musetalk_pipeline.boxes import Box
from musetalk_pipeline.engines.musetalk.engine import MuseTalkEngine, MuseTalkOptions
from musetalk_pipeline.networks.precision import resolve_device
from musetalk_pipeline.networks.runner import Acceleration
from musetalk_pipeline.options import MaskOptions, SpeechOptions
from musetalk_pipeline.plan import Block, Segment

SPEEDUPS = {
    "contiguous": Acceleration(channels_last=False),
    "channels_last": Acceleration(channels_last=True),
    "cuda_graphs": Acceleration(channels_last=True, cuda_graphs=True),
    "compile": Acceleration(channels_last=True, compile=True),
}
SETTINGS = (
    "channels_last:auto",
    "cuda_graphs:auto",
    "channels_last:8",
    "channels_last:16",
    "cuda_graphs:16",
    "contiguous:32",
)
FACE = Face(np.zeros((68, 2), np.float32), Box(0, 0, 256, 256), 1.0)


class NetworkClock:
    """Seconds that pass inside an engine's networks: between events on the GPU's own clock, or on
    the wall's on a CPU.
    """

    def __init__(self, engine: MuseTalkEngine, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._began: Any = None
        self._hooks = ExitStack()
        for runner in engine._runners():
            network = runner._network
            self._hooks.callback(network.register_forward_pre_hook(self._begin).remove)
            self._hooks.callback(network.register_forward_hook(self._end).remove)

    def take(self) -> float:
        """Return the seconds since the last call."""
        if self._is_cuda:
            torch.cuda.synchronize()
            total = sum(begin.elapsed_time(end) for begin, end in self._spans) / 1000
        else:
            total = sum(end - begin for begin, end in self._spans)
        self._spans.clear()
        return float(total)

    def close(self) -> None:
        """Leave the networks alone again."""
        self._hooks.close()

    def _begin(self, *_: object) -> None:
        self._began = self._now()

    def _end(self, *_: object) -> None:
        self._spans.append((self._began, self._now()))

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every setting, print, write."""
    options = _parse(arguments)
    device = resolve_device(options.device)
    document: dict[str, Any] = {
        "machine": describe(device),
        "torch": torch.__version__,
        "dtype": options.dtype,
        "frames": options.frames,
        "rows": [],
    }
    for setting in options.setting:
        try:
            with time_limit(options.limit_s):
                row = measure(setting, options, device)
        except Exception as error:  # of whatever kind: the other settings still count
            row = {"setting": setting, "failed": f"{type(error).__name__}: {error}"[:300]}
        document["rows"].append(row)
        print(line_of(row), file=sys.stderr, flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if options.out:
            options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))
    return 0


def measure(setting: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the figures of one setting."""
    speedup, _, batch = setting.partition(":")
    is_auto = batch == "auto"
    started = time.perf_counter()
    engine = MuseTalkEngine(
        options.models,
        MuseTalkOptions(
            device=options.device,
            precision=options.dtype,
            batch_size=None if is_auto else int(batch),
            acceleration=SPEEDUPS[speedup],
        ),
    )
    row: dict[str, Any] = {"setting": setting, "load_s": round(time.perf_counter() - started, 2)}
    row["batch_size"] = engine.batch_size
    if is_auto:
        started = time.perf_counter()
        engine.warm_up()
        row["warm_up_s"] = round(time.perf_counter() - started, 2)
    block, avatar = blocks(options.frames)
    speech = Speech(
        np.random.default_rng(2).standard_normal((options.frames, 50, 384)).astype(np.float32),
        np.ones(options.frames, np.float32),
    )
    segment = Segment(0, 0, options.frames, 0, 0, 1)
    clock = NetworkClock(engine, device)

    def generate() -> None:
        engine.generate(avatar, speech, segment, SpeechOptions())

    def encode() -> None:
        engine.encode(block, MaskOptions())

    engine.peak_memory_mib()
    for name, call in (("generate", generate), ("encode", encode)):
        row[name] = timed(call, clock, options) | {"peak_mib": engine.peak_memory_mib()}
    clock.close()
    row["float32_redos"] = engine.counters.float32_redos
    row["batch_halvings"] = engine.counters.batch_halvings
    return row


def timed(
    call: Callable[[], None], clock: NetworkClock, options: argparse.Namespace
) -> dict[str, float]:
    """Return what one call takes, after one that is not counted."""
    started = time.perf_counter()
    call()
    first_s = time.perf_counter() - started
    clock.take()
    started, started_cpu, count = time.perf_counter(), time.process_time(), 0
    while count < 2 or time.perf_counter() - started < options.seconds:
        call()
        count += 1
    wall_s = time.perf_counter() - started
    return {
        "frames_per_s": round(options.frames * count / wall_s, 2),
        "wall_ms": round(wall_s / count * 1000, 2),
        "cpu_ms": round((time.process_time() - started_cpu) / count * 1000, 2),
        "share": round(clock.take() / wall_s, 4),
        "first_call_s": round(first_s, 2),
        "calls": count,
    }


def blocks(frames: int) -> tuple[PreparedBlock, AvatarBlock]:
    """Return a block of random faces as it comes from the CPU, and as it is encoded."""
    random = np.random.default_rng(1)
    block = Block(0, 0, frames)
    faces = (FACE,) * frames
    prepared = PreparedBlock(
        block=block,
        faces=faces,
        crops=random.integers(0, 256, (frames, 256, 256, 3), dtype=np.uint8),
        parse_inputs=random.integers(0, 256, (frames, 512, 512, 3), dtype=np.uint8),
    )
    avatar = AvatarBlock(
        block=block,
        faces=faces,
        appearance=random.standard_normal((frames, 8, 32, 32)).astype(np.float32),
        masks=np.zeros((frames, 512 * 512 // 8), np.uint8),
    )
    return prepared, avatar


def line_of(row: dict[str, Any]) -> str:
    """Return a row in words."""
    if "failed" in row:
        return f"{row['setting']}: failed: {row['failed']}"
    parts = [
        f"{name} {row[name]['frames_per_s']} frames/s, {row[name]['share']:.0%} in the networks"
        for name in ("generate", "encode")
    ]
    return f"{row['setting']} (batch {row['batch_size']}): {'; '.join(parts)}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True, help="weights as published")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--frames", type=int, default=50, help="in one call")
    parser.add_argument(
        "--setting", nargs="+", default=SETTINGS, help=f"speedup:batch; {' '.join(SETTINGS)}"
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each figure")
    parser.add_argument(
        "--limit-s", type=float, default=60.0, help="time after which a setting counts as failed"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
