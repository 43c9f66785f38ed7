"""Batches of fixed shapes, that halve when memory is short and turn to float32 on overflow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from musetalk_pipeline.errors import GpuLost, ModelLoadFailed, OutOfGpuMemory, StageFailed
from musetalk_pipeline.networks.precision import choose_batch_size, resolve_device
from musetalk_pipeline.networks.runner import Acceleration, BatchRunner, Counters
from musetalk_pipeline.options import Speedup


class Scale(nn.Module):
    """Multiplies by 300, which overflows float16 above 218; fails above `fits` rows."""

    def __init__(self, fits: int = 1000, error: Callable[[], Exception] | None = None) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(300.0))
        self.fits = fits
        self.error = error or (lambda: torch.OutOfMemoryError("CUDA out of memory"))
        self.seen: list[int] = []

    def forward(self, rows: Tensor) -> Tensor:
        self.seen.append(len(rows))
        if len(rows) > self.fits:
            raise self.error()
        return rows.to(self.factor.dtype) * self.factor


def runner(
    network: nn.Module,
    batch_size: int = 4,
    dtype: torch.dtype = torch.float32,
    again: Callable[[], nn.Module] | None = None,
) -> tuple[BatchRunner, Counters]:
    """Return a runner of `network` and what it counts. `again`: makes the copy in float32."""
    counters, first = Counters(), [network]
    made = BatchRunner(
        "scale",
        lambda: first.pop() if first or again is None else again(),
        lambda raw: raw.float(),
        device=torch.device("cpu"),
        dtype=dtype,
        counters=counters,
        acceleration=Acceleration(),
    )
    made.batch_size = batch_size
    return made, counters


def test_every_row_comes_out_once_and_in_order() -> None:
    made, counters = runner(Scale())
    rows = torch.arange(11.0)[:, None]
    assert torch.equal(made.run(rows), rows * 300)
    assert counters.frames == 11


def test_batches_have_few_shapes_and_the_last_is_padded() -> None:
    network = Scale()
    made, _ = runner(network, batch_size=8)
    for count in range(1, 20):
        assert len(made.run(torch.ones(count, 1))) == count
    assert set(network.seen) == {1, 2, 4, 8} == made.shapes()


def test_a_segment_of_two_seconds_is_not_padded_to_64() -> None:
    network = Scale()
    made, _ = runner(network, batch_size=32)
    made.run(torch.ones(50, 1))
    assert network.seen == [32, 24]
    assert made.shapes() == {1, 2, 4, 8, 16, 24, 32}


def test_a_batch_size_between_the_powers_is_a_shape_of_its_own() -> None:
    network = Scale()
    made, _ = runner(network, batch_size=20)
    made.run(torch.ones(37, 1))
    assert network.seen == [20, 20]


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    network = Scale(fits=2)
    made, counters = runner(network, batch_size=8)
    rows = torch.arange(11.0)[:, None]
    assert torch.equal(made.run(rows), rows * 300)
    assert made.batch_size == 2
    assert counters.batch_halvings == 2
    made.run(rows)
    assert counters.batch_halvings == 2  # it stays small


def test_out_of_memory_in_mid_job_keeps_what_is_done() -> None:
    network = Scale()
    made, counters = runner(network, batch_size=4)
    made.run(torch.ones(4, 1))
    network.fits = 1
    assert torch.equal(made.run(torch.arange(6.0)[:, None]), torch.arange(6.0)[:, None] * 300)
    assert counters.batch_halvings == 2


@pytest.mark.parametrize(
    "words",
    [
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
        "FIND was unable to find an engine to execute this computation",
    ],
)
def test_libraries_that_run_out_of_memory_are_understood(words: str) -> None:
    made, counters = runner(Scale(fits=1, error=lambda: RuntimeError(words)), batch_size=2)
    assert len(made.run(torch.ones(3, 1))) == 3
    assert counters.batch_halvings == 1


def test_not_even_one_row_is_an_error_that_says_so() -> None:
    made, _ = runner(Scale(fits=0))
    with pytest.raises(OutOfGpuMemory, match="scale") as caught:
        made.run(torch.ones(3, 1))
    assert caught.value.details["is_oom"] is True
    assert caught.value.retryable


def test_other_faults_are_not_taken_for_want_of_memory() -> None:
    made, _ = runner(Scale(fits=0, error=lambda: RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        made.run(torch.ones(3, 1))


def test_a_batch_that_overflows_in_half_precision_is_redone_in_float32() -> None:
    counters = Counters()
    made = BatchRunner(
        "scale",
        Scale,  # a new one in float32, as from the file
        lambda raw: raw.float(),
        device=torch.device("cpu"),
        dtype=torch.float16,
        counters=counters,
        acceleration=Acceleration(),
    )
    made.batch_size = 2
    rows = torch.tensor([1.0, 2.0, 3.0, 1000.0, 5.0])[:, None]
    assert torch.equal(made.run(rows), rows * 300)
    assert counters.float32_redos == 1


def test_float32_that_fits_only_in_small_batches_leaves_the_batch_size_of_half_precision() -> None:
    network = Scale()
    made, counters = runner(network, batch_size=4, dtype=torch.float16, again=lambda: Scale(fits=1))
    rows = torch.full((4, 1), 1000.0)
    assert torch.equal(made.run(rows), rows * 300)
    assert counters.batch_halvings == 1  # from the two that were tried
    assert made.batch_size == 4


def test_no_memory_for_the_float32_copy_is_said_to_be_that() -> None:
    def no_memory() -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made, _ = runner(Scale(), dtype=torch.float16, again=no_memory)
    with pytest.raises(OutOfGpuMemory, match="scale"):
        made.run(torch.full((2, 1), 1000.0))


@pytest.mark.parametrize(
    "fault",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered\npages"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=["context", "cudnn"],
)
def test_a_lost_gpu_is_named_in_one_line(fault: Exception) -> None:
    made, _ = runner(Scale(fits=0, error=lambda: fault))
    with pytest.raises(GpuLost, match="scale failed on cpu") as caught:
        made.run(torch.ones(1, 1))
    assert "pages" not in caught.value.message and caught.value.retryable


def test_numbers_that_are_not_finite_in_float32_are_an_error() -> None:
    made, _ = runner(Scale())
    with pytest.raises(StageFailed, match="not finite"):
        made.run(torch.tensor([[1.0], [float("nan")]]))


def test_nothing_records_gradients() -> None:
    made, _ = runner(Scale())
    assert made.run(torch.ones(2, 1)).is_inference()


@pytest.mark.parametrize("free_gib", [0.1, 1, 6, 11, 24, 80])
def test_batch_size_grows_with_free_memory_by_powers_of_two(free_gib: float) -> None:
    free = int(free_gib * 2**30)
    single, half = (choose_batch_size(free, dtype) for dtype in (torch.float32, torch.float16))
    assert 1 <= single <= half <= 32
    assert half.bit_count() == 1
    assert single == 1 or single * 640 * 2**20 <= 0.8 * free


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(ModelLoadFailed, match="cuda:3"):
        resolve_device("cuda:3")
    assert resolve_device("auto") == torch.device("cpu")


def test_a_gpu_without_an_index_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q30: a bare "cuda" is whatever GPU is current in a thread at the time."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for name in ("cuda", "auto"):
        assert resolve_device(name) == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ModelLoadFailed, match="cuda:2"):
        resolve_device("cuda:2")


def test_graphs_and_compilation_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="not both"):
        Acceleration(cuda_graphs=True, compile=True)


@pytest.mark.parametrize("speedup", ["none", "cuda_graphs", "compile"])
def test_a_speedup_by_name_is_that_one_alone(speedup: Speedup) -> None:
    asked = Acceleration.of(speedup)
    assert asked.cuda_graphs is (speedup == "cuda_graphs")
    assert asked.compile is (speedup == "compile")
