"""What only a CUDA GPU can show: its numbers, recorded graphs, its memory. `make test-gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from musetalk_pipeline.engines.musetalk.engine import MuseTalkEngine, MuseTalkOptions
from musetalk_pipeline.networks.runner import Acceleration
from musetalk_pipeline.options import Precision
from tests.unit.networks.test_musetalk_engine import draw, worst

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

MIB = 2**20


def on_cuda(models: Path, **options: object) -> MuseTalkEngine:
    return MuseTalkEngine(models, MuseTalkOptions(device="cuda", **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def on_cpu(models: Path) -> MuseTalkEngine:
    return MuseTalkEngine(models)


def test_float32_gives_what_a_cpu_gives(models: Path, on_cpu: MuseTalkEngine) -> None:
    assert worst(draw(on_cuda(models), "xxxxx"), draw(on_cpu, "xxxxx")) <= 1


@pytest.mark.parametrize(("precision", "mean_bound"), [("float16", 2.0), ("bfloat16", 8.0)])
def test_half_precision_stays_near(
    models: Path, on_cpu: MuseTalkEngine, precision: Precision, mean_bound: float
) -> None:
    if precision == "bfloat16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no bfloat16")
    half = on_cuda(models, precision=precision)
    difference = np.abs(draw(half, "xxx").astype(int) - draw(on_cpu, "xxx"))
    assert 0 < difference.mean() < mean_bound


@pytest.mark.parametrize(
    "acceleration", [Acceleration(cuda_graphs=True), Acceleration(compile=True)], ids=repr
)
def test_what_makes_it_faster_changes_rounding_only(
    models: Path, acceleration: Acceleration
) -> None:
    plain = on_cuda(models, precision="float16", batch_size=4)
    fast = on_cuda(models, precision="float16", batch_size=4, acceleration=acceleration)
    fast.warm_up()  # all four networks, the parser and the encoder too
    for faces in ("xxxxxx", "x", "xxx", "xxxxxx"):  # every shape, and one again
        difference = np.abs(draw(fast, faces).astype(int) - draw(plain, faces))
        # A compiler fuses norms in float32, so single values may be as far off as float16's are.
        assert difference.mean() < 1.0
        assert difference.max() <= (2 if acceleration.cuda_graphs else 16)


def test_recordings_that_were_dropped_are_made_again(models: Path) -> None:
    graphs = Acceleration(cuda_graphs=True)
    engine = on_cuda(models, precision="float16", batch_size=4, acceleration=graphs)
    first = draw(engine, "xxxx")
    engine._encoder._free()
    engine._unet._free()
    assert worst(draw(engine, "xxxx"), first) <= 2


def test_the_batch_size_follows_the_share_of_the_gpu(models: Path) -> None:
    whole, tenth = on_cuda(models), on_cuda(models, gpu_share=0.01)
    assert tenth.batch_size < whole.batch_size


def test_warm_up_sees_every_shape_and_its_peak_is_no_jobs(models: Path) -> None:
    engine = on_cuda(models, precision="float16", batch_size=16)
    engine.warm_up()
    warm = engine.counters.batches
    assert warm == 4 * (2 + len(engine._unet.shapes()))
    rest = engine.peak_memory_mib()
    draw(engine, "x" * 16)
    drawing = engine.peak_memory_mib()
    assert rest is not None and drawing is not None and rest < drawing


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leave the process 200 MiB beyond what it holds when the fixture is asked for."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 200 * MIB) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_gpus_own_out_of_memory_halves_the_batch(
    models: Path, on_cpu: MuseTalkEngine, little_memory: None
) -> None:
    engine = on_cuda(models, batch_size=32)
    drawn = draw(engine, "x" * 40)
    assert engine.counters.batch_halvings > 0
    assert worst(drawn, draw(on_cpu, "x" * 40)) <= 1


def test_the_peak_of_memory_is_told_and_begins_anew(models: Path) -> None:
    engine = on_cuda(models, batch_size=4)
    draw(engine, "xxxx")
    peak = engine.peak_memory_mib()
    assert peak is not None and 0 < peak * MIB < torch.cuda.get_device_properties(0).total_memory
    rest = engine.peak_memory_mib()
    assert rest is not None and rest < peak
    held = engine.held_memory_mib()
    assert held is not None and held >= rest
