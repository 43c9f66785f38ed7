"""Runs one network over many rows, in batches of a few fixed shapes, and recovers from failures.

- The last batch is padded to the next shape, so that a GPU only ever gets the same few shapes.
- If the GPU's memory runs out, the batch is halved and the run continues.
- A batch with NaN or infinity in half precision is computed again in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from musetalk_pipeline.errors import OutOfGpuMemory, StageFailed
from musetalk_pipeline.networks.precision import (
    exact_math,
    first_line,
    is_out_of_memory,
    naming_lost_gpu,
)
from musetalk_pipeline.options import Speedup
from musetalk_pipeline.watch import Check, go_on

logger = logging.getLogger(__name__)

# Beyond its own limit of 8, torch would quietly run uncompiled. There are 7 batch shapes, each also
# halved, and the lengths of audio windows that requests may choose.
COMPILED_SHAPES = 64
STEP = 8  # rows from one batch shape to the next, above the smaller powers of two


@dataclass(slots=True)
class Counters:
    """What happened since the engine was built."""

    batches: int = 0
    frames: int = 0
    float32_redos: int = 0  # batches computed again because half precision overflowed
    batch_halvings: int = 0  # times a batch did not fit into memory


@dataclass(frozen=True, slots=True)
class Acceleration:
    """Optional acceleration on a GPU. None of it changes more than rounding.

    `channels_last`: None means if compiled, on CUDA in half precision. `cuda_graphs` and `compile`
    exclude each other; both cost time at the first batch of each shape, and memory from then on.
    """

    channels_last: bool | None = None
    cuda_graphs: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.cuda_graphs and self.compile:
            raise ValueError("choose cuda_graphs or compile, not both")

    @classmethod
    def of(cls, speedup: Speedup) -> Acceleration:
        """Return the acceleration that a configuration names."""
        return cls(cuda_graphs=speedup == "cuda_graphs", compile=speedup == "compile")


@dataclass(frozen=True, slots=True)
class _Part:
    """The result of rows `[start, end)`, and a scalar that is true if all of it is finite."""

    start: int
    end: int
    result: Tensor
    is_finite: Tensor


class BatchRunner:
    """One network on one device. Not for use by two threads at once."""

    def __init__(
        self,
        name: str,
        make: Callable[[], nn.Module],
        finish: Callable[[Tensor], Tensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
        counters: Counters,
        acceleration: Acceleration,
    ) -> None:
        """Put the network on its device.

        `make` returns it in float32 on the CPU, and is called again if float32 is needed later.
        `finish` turns the network's output into what the caller needs, row by row.
        """
        self.name = name
        self.device = device
        self.dtype = dtype
        self.batch_size = 1
        self._make = make
        self._finish = finish
        self._counters = counters
        self._acceleration = acceleration
        self._network = place(make(), device, dtype, acceleration)
        self._float32: nn.Module | None = None

    @torch.inference_mode()
    def run(self, *inputs: Tensor, check: Check = go_on) -> Tensor:
        """Return the finished rows, on the device. All `inputs` have one row for each.

        `check` is called before every batch.

        Raises:
            OutOfGpuMemory: a batch of one row does not fit.
            GpuLost: the GPU failed; every later call of this process will.
            StageFailed: the network returns numbers that are not finite, even in float32.
        """
        try:
            with naming_lost_gpu(self.name, self.device):
                return self._run(inputs, check)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Not a batch but all inputs, or the float32 copy of the network, did not fit.
        self._free()
        raise self._does_not_fit()

    def _run(self, inputs: Sequence[Tensor], check: Check) -> Tensor:
        inputs = tuple(rows.to(self.device, non_blocking=True) for rows in inputs)
        with exact_math(self.device, self.dtype):
            parts = self._batches(self._network, inputs, check)
        finite = torch.stack([part.is_finite for part in parts]).tolist()  # one synchronisation
        for index, is_finite in enumerate(finite):
            if not is_finite:
                parts[index] = self._redo(parts[index], inputs)
        self._counters.frames += inputs[0].shape[0]
        return torch.cat([part.result for part in parts])

    def shape_for(self, rows: int) -> int:
        """Return the batch shape for `rows`: 1, 2, 4 or a multiple of 8, at most the batch size.

        There are few shapes, because a GPU has to be prepared for each of them. They are not only
        powers of two, because a segment of 50 frames would then be padded to 64.
        """
        wanted = 1 << (rows - 1).bit_length() if rows <= STEP else -(-rows // STEP) * STEP
        return min(self.batch_size, wanted)

    def shapes(self) -> set[int]:
        """Return every shape that a batch can have."""
        return {self.shape_for(rows) for rows in range(1, self.batch_size + 1)}

    def _batches(
        self, network: nn.Module, inputs: Sequence[Tensor], check: Check = go_on
    ) -> list[_Part]:
        parts: list[_Part] = []
        start, count = 0, inputs[0].shape[0]
        while start < count:
            check()
            end = min(start + self.batch_size, count)
            part = self._attempt(network, inputs, start, end)
            if part is None:
                self._halve()
                continue
            parts.append(part)
            start = end
        return parts

    def _attempt(
        self, network: nn.Module, inputs: Sequence[Tensor], start: int, end: int
    ) -> _Part | None:
        """Compute one batch; None if it does not fit. Returning frees what the attempt held."""
        try:
            shape = self.shape_for(end - start)
            raw = network(*(_padded(rows[start:end], shape) for rows in inputs))[: end - start]
            self._counters.batches += 1
            return _Part(start, end, self._finish(raw), torch.isfinite(raw).all())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("batch failed", extra={"network": self.name, "error": first_line(error)})
            return None

    def _halve(self) -> None:
        """Go on with half the batch.

        Raises:
            OutOfGpuMemory: it was one row already.
        """
        self._free()
        if self.batch_size == 1:
            raise self._does_not_fit()
        self.batch_size //= 2
        self._counters.batch_halvings += 1
        logger.warning(
            "out of memory, batch halved",
            extra={"network": self.name, "batch_size": self.batch_size},
        )

    def _redo(self, part: _Part, inputs: Sequence[Tensor]) -> _Part:
        """Compute rows again in float32.

        Half the range of float16 is lost in the networks' norms on some GPUs; the reference turns
        such faces black (docs/reference.md Q36).
        """
        if self.dtype is torch.float32:
            raise self._not_finite()
        self._counters.float32_redos += 1
        logger.warning(
            "not finite in half precision, batch redone in float32",
            extra={"network": self.name, "dtype": str(self.dtype), "frames": part.end - part.start},
        )
        if self._float32 is None:
            self._free()
            self._float32 = place(self._make(), self.device, torch.float32, self._acceleration)
        rows = [tensor[part.start : part.end] for tensor in inputs]
        # Float32 takes twice the memory. The batch that fits says nothing about half precision.
        usual = self.batch_size
        self.batch_size = max(1, usual // 2)
        try:
            with exact_math(self.device, torch.float32):
                again = self._batches(self._float32, rows)
        finally:
            self.batch_size = usual
        if not torch.stack([batch.is_finite for batch in again]).all():
            raise self._not_finite()
        result = torch.cat([batch.result for batch in again])
        return _Part(part.start, part.end, result, torch.ones((), dtype=torch.bool))

    def _does_not_fit(self) -> OutOfGpuMemory:
        return OutOfGpuMemory(
            f"The {self.name} does not fit into the memory of {self.device}, even for one frame. "
            "Use a GPU with more memory, float16, or fewer replicas on it.",
            network=self.name,
            device=str(self.device),
        )

    def _not_finite(self) -> StageFailed:
        return StageFailed(
            f"The {self.name} returned numbers that are not finite, in float32 too, so its weights "
            "or the GPU are damaged. Verify the weights with `lipsync weights verify`.",
            network=self.name,
        )

    def _free(self) -> None:
        """Give cached memory, recorded graphs included, back to the driver."""
        for network in (self._network, self._float32):
            if isinstance(network, GraphedNetwork):
                network.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def place(
    network: nn.Module, device: torch.device, dtype: torch.dtype, acceleration: Acceleration
) -> nn.Module:
    """Put a network on its device in its precision, with the requested acceleration."""
    on_cuda = device.type == "cuda"
    channels_last = acceleration.channels_last
    if channels_last is None:
        # On an H200 contiguous tensors were faster, by a tenth in the decoder and a third in the
        # encoder. Compiled networks were measured with channels-last only.
        channels_last = on_cuda and dtype is not torch.float32 and acceleration.compile
    network = network.to(device, dtype).eval()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if acceleration.compile:
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES
        network.compile(dynamic=False)
    if not (acceleration.cuda_graphs and on_cuda):
        return network
    with torch.cuda.device(device):
        return GraphedNetwork(network)


def _padded(rows: Tensor, shape: int) -> Tensor:
    """Repeat the last row until there are `shape`. No network mixes rows, so the rest is equal."""
    missing = shape - rows.shape[0]
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


class GraphedNetwork(nn.Module):
    """Records the kernels of each input shape once and replays them, which saves launch costs.

    All recordings share one pool of memory, because only one of them plays at a time. They have a
    stream of their own, because dropping a recording clears the workspaces of its stream, and the
    recordings of another network on the same stream would go on using them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._recorded: dict[tuple[torch.Size, ...], _Recording] = {}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the network's output for `inputs`."""
        shapes = tuple(rows.shape for rows in inputs)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(inputs)
        recording = self._recorded[shapes]
        for held, rows in zip(recording.inputs, inputs, strict=True):
            held.copy_(rows)
        recording.graph.replay()
        return recording.output.clone()  # the next replay writes over it

    def forget(self) -> None:
        """Drop all recordings and the memory they hold."""
        self._recorded.clear()
        self._pool = torch.cuda.graph_pool_handle()

    def _record(self, inputs: Sequence[Tensor]) -> _Recording:
        held = tuple(rows.clone() for rows in inputs)
        # Libraries choose algorithms and allocate workspaces in the first calls, which a recording
        # must not contain; on the stream of the recording, as CUDA requires.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                self.network(*held)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = self.network(*held)
        return _Recording(graph, held, output)


@dataclass(frozen=True, slots=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor
