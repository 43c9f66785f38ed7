"""Speed of each network at full size, against the matrix product of the same machine.

    python benchmarks/networks.py --device cuda --dtype float16
    python benchmarks/networks.py --device cpu --threads 2

Random weights, made on the device: needs neither Ray nor files. Prints a table in Markdown and
writes the same figures as JSON where `--out` says, after each row. Batches of 1 to 64 on CUDA,
of 1 and 4 on a CPU. A row that fails or takes longer than `--limit-s` says so, and ends its
variant; a variant that changes nothing of a network, or not on this device, has no row.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import project  # noqa: F401
import torch
from network_subjects import (
    SUBJECTS,
    Subject,
    count_gflop,
    random_network,
    without_fused_attention,
)
from torch import Tensor, nn

from musetalk_pipeline.networks.precision import (
    DTYPES,
    check_precision,
    exact_math,
    is_out_of_memory,
    resolve_device,
)
from musetalk_pipeline.networks.runner import Acceleration, place

MATMUL_S = 0.5
CUDA_BATCHES = (1, 2, 4, 8, 16, 32, 64)
CPU_BATCHES = (1, 4)  # of 4, the slowest network takes 20 s a batch on two cores

VARIANTS = {
    "eager": Acceleration(channels_last=False),
    "no_sdpa": Acceleration(channels_last=False),
    "channels_last": Acceleration(channels_last=True),
    "cuda_graphs": Acceleration(channels_last=True, cuda_graphs=True),
    "compile": Acceleration(channels_last=True, compile=True),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """Figures of one network in one variant at one batch size; times are of one batch."""

    network: str
    variant: str
    dtype: str
    batch: int
    first_s: float  # the first call, in which algorithms are chosen, graphs compiled or recorded
    wall_ms: float
    cpu_ms: float
    frames_per_s: float
    gflop_per_frame: float
    gflop_per_s: float
    matmul_gflop_per_s: float
    share_of_matmul: float
    peak_mib: float | None
    beyond_weights_mib: float | None  # of the peak: neither weights nor inputs


@dataclass(frozen=True, slots=True)
class Failure:
    """A row without figures, and why."""

    network: str
    variant: str
    dtype: str
    batch: int
    failed: str


Row = Timing | Failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    dtype = check_precision(options.dtype, device)
    machine = describe(device)
    print(f"{machine}; torch {torch.__version__}; {torch.get_num_threads()} threads")
    rows: list[Row] = []
    for subject in SUBJECTS:
        if options.only and not any(part in subject.name for part in options.only):
            continue
        kind = torch.float32 if subject.is_float32_only else dtype
        for variant in options.variant:
            if not applies(variant, subject, device):
                continue
            for row in measure(subject, variant, device, kind, options):
                rows.append(row)
                if options.out:
                    write(options.out, machine, rows)
    print(table(rows))
    return 0


def write(path: Path, machine: str, rows: Sequence[Row]) -> None:
    """Write all figures so far."""
    document = {
        "machine": machine,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/networks.py", *sys.argv[1:]]),
        "timings": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def applies(variant: str, subject: Subject, device: torch.device) -> bool:
    """Tell whether a variant is another way to run this network on this device."""
    if variant == "cuda_graphs":
        return device.type == "cuda"
    with torch.device("meta"):
        network = subject.make()
    if variant == "no_sdpa":
        return any(hasattr(module, "set_processor") for module in network.modules())
    if variant == "channels_last":  # a layout of two-dimensional convolutions
        return any(parameter.ndim == 4 for parameter in network.parameters())
    return True


def measure(
    subject: Subject,
    variant: str,
    device: torch.device,
    dtype: torch.dtype,
    options: argparse.Namespace,
) -> Iterator[Row]:
    """Time one network in one variant over all batch sizes, until one fails."""
    batches = options.batch or (CUDA_BATCHES if device.type == "cuda" else CPU_BATCHES)
    batch = batches[0]
    try:
        gflop = count_gflop(subject)
        rate = matmul_rate(device, dtype)
        network = prepared(subject, variant, device, dtype)
        for batch in batches:
            inputs = tuple(rows.to(device) for rows in subject.inputs(batch))
            held = held_mib(device)
            with (
                time_limit(options.limit_s),
                exact_math(device, dtype),
                torch.inference_mode(),
            ):
                calls = time_calls(
                    lambda inputs=inputs: network(*inputs),  # type: ignore[misc]
                    device,
                    options.seconds,
                    # The memory of recorded graphs is taken, and kept, while they are recorded.
                    with_warm_up=variant == "cuda_graphs",
                )
            wall_s, peak = calls.wall_s, calls.peak_mib
            print(f"{subject.name}, {variant}, batch {batch}: {wall_s:.3f} s", file=sys.stderr)
            yield Timing(
                network=subject.name,
                variant=variant,
                dtype=name_of(dtype),
                batch=batch,
                first_s=calls.first_s,
                wall_ms=wall_s * 1000,
                cpu_ms=calls.cpu_s * 1000,
                frames_per_s=batch / wall_s,
                gflop_per_frame=gflop,
                gflop_per_s=gflop * batch / wall_s,
                matmul_gflop_per_s=rate,
                share_of_matmul=gflop * batch / wall_s / rate,
                peak_mib=peak,
                beyond_weights_mib=None if peak is None or held is None else peak - held,
            )
    except Exception as error:
        # Of whatever kind (a compiler's, a library's, the limit's): the other rows still count.
        reason = "out of memory" if is_out_of_memory(error) else _reason(error)
        print(f"{subject.name}, {variant}, batch {batch}: failed: {reason}", file=sys.stderr)
        yield Failure(subject.name, variant, name_of(dtype), batch, reason)


def prepared(subject: Subject, variant: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return the network on its device, ready to run in that variant."""
    network = random_network(subject, device)
    if variant == "no_sdpa":
        without_fused_attention(network)
    return place(network, device, dtype, VARIANTS[variant])


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block when its time is up: between two operators, never inside."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True, slots=True)
class Calls:
    """Seconds of the first call, wall and CPU seconds of a later one, the peak of GPU memory."""

    first_s: float
    wall_s: float
    cpu_s: float
    peak_mib: float | None


def time_calls(
    call: Callable[[], Tensor], device: torch.device, seconds: float, *, with_warm_up: bool = False
) -> Calls:
    """Time a call, warmed up first; then as many as fit into `seconds`, at least two.

    `with_warm_up`: the peak is that of the warm-up too, where kernels are chosen by trying ones
    that need more.
    """
    on_cuda = device.type == "cuda"
    if on_cuda and with_warm_up:
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    call()
    _wait(device)
    first_s = time.perf_counter() - started
    for _ in range(2 if on_cuda else 0):
        call()
    _wait(device)
    if on_cuda and not with_warm_up:
        torch.cuda.reset_peak_memory_stats(device)
    started, started_cpu, count = time.perf_counter(), time.process_time(), 0
    while count < 2 or time.perf_counter() - started < seconds:
        call()
        # A few at a time, so that the clock is read between them: launches run ahead of a GPU.
        count += 1
        if count % 8 == 0:
            _wait(device)
    _wait(device)
    wall_s = (time.perf_counter() - started) / count
    cpu_s = (time.process_time() - started_cpu) / count
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if on_cuda else None
    return Calls(first_s, wall_s, cpu_s, peak)


def held_mib(device: torch.device) -> float | None:
    """Return the GPU memory that tensors hold now, in MiB."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else None


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the GFLOP/s of a large square matrix product: what the device can be made to do.

    Measured again before each network, because a machine's load and clocks change.
    """
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with exact_math(device, dtype), torch.inference_mode():
        calls = time_calls(lambda: left @ right, device, MATMUL_S)
    return 2 * side**3 / calls.wall_s / 1e9


def table(rows: Sequence[Row]) -> str:
    """Return the figures in Markdown, and below them the goal: UNet and decoder together."""
    lines = [
        "",
        "| network | variant | dtype | batch | ms/batch | CPU ms/batch | ms/frame | frames/s "
        "| GFLOP/frame | GFLOP/s | matmul GFLOP/s | share | peak MiB | of it beyond weights |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for each in rows:
        if isinstance(each, Failure):
            blanks = "| " * 9
            lines.append(
                f"| {each.network} | {each.variant} | {each.dtype} | {each.batch} "
                f"| failed: {each.failed} {blanks}|"
            )
            continue
        memory = ["" if mib is None else f"{mib:.0f}" for mib in _memory(each)]
        lines.append(
            f"| {each.network} | {each.variant} | {each.dtype} | {each.batch} "
            f"| {each.wall_ms:.1f} | {each.cpu_ms:.1f} | {each.wall_ms / each.batch:.1f} "
            f"| {each.frames_per_s:.2f} | {each.gflop_per_frame:.1f} | {each.gflop_per_s:.0f} "
            f"| {each.matmul_gflop_per_s:.0f} | {each.share_of_matmul:.0%} | {' | '.join(memory)} |"
        )
    lines.append("")
    timings = [row for row in rows if isinstance(row, Timing)]
    by_key = {(each.network, each.variant, each.batch): each for each in timings}
    for (network, variant, batch), unet in by_key.items():
        decoder = by_key.get(("VAE decoder", variant, batch))
        if network == "UNet" and decoder is not None:
            wall_ms = unet.wall_ms + decoder.wall_ms
            gflop = batch * (unet.gflop_per_frame + decoder.gflop_per_frame)
            rate = (unet.matmul_gflop_per_s + decoder.matmul_gflop_per_s) / 2
            lines.append(
                f"UNet and decoder, {variant}, batch {batch}: {batch / wall_ms * 1000:.2f} "
                f"frames/s, {gflop / wall_ms:.2f} TFLOP/s, {gflop / wall_ms * 1000 / rate:.0%} "
                "of the matrix product"
            )
    return "\n".join(lines)


def _memory(timing: Timing) -> tuple[float | None, float | None]:
    return timing.peak_mib, timing.beyond_weights_mib


def describe(device: torch.device) -> str:
    """Return what the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def name_of(dtype: torch.dtype) -> str:
    """Return `float16` for torch.float16."""
    return str(dtype).removeprefix("torch.")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        help=f"frames in one pass; {_listed(CUDA_BATCHES)} on CUDA, {_listed(CPU_BATCHES)} on a "
        "CPU unless set",
    )
    parser.add_argument(
        "--variant", nargs="+", default=["eager"], choices=sorted(VARIANTS), help="ways to run"
    )
    parser.add_argument("--only", nargs="+", help="networks whose name contains one of these")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each figure")
    parser.add_argument(
        "--limit-s", type=float, default=300.0, help="time after which a row counts as failed"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
