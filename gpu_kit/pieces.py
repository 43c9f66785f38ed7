"""What is measured on a machine with a GPU: each piece's commands, in order of their worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LONGEST_S = 540.0  # of one command


@dataclass(frozen=True, slots=True)
class Place:
    """Folders that commands are told. `out`: of the figures. `kit`: of the unpacked parts.
    `models`: of the random weights. `device`: cuda, or cpu to try a piece out.
    """

    out: Path
    kit: Path
    models: Path
    device: str


@dataclass(frozen=True, slots=True)
class Command:
    """One program with its arguments after the name of Python, and how long it may take."""

    name: str
    arguments: tuple[str, ...]
    limit_s: float

    def __post_init__(self) -> None:
        if not 0 < self.limit_s <= LONGEST_S:
            raise ValueError(f"{self.name}: a command may take {LONGEST_S:g} s at most")


@dataclass(frozen=True, slots=True)
class Piece:
    """A set of commands under one name. `parts`: of the kit, that it has on its path."""

    name: str
    commands: Callable[[Place], list[Command]]
    needs_weights: bool = False
    parts: tuple[str, ...] = ("base",)


ON_CUDA = "tests/unit/networks/test_on_cuda.py"
# The one that compiles twelve networks, which takes longer than all the others.
COMPILES = (
    f"{ON_CUDA}::test_what_makes_it_faster_changes_rounding_only"
    "[Acceleration(channels_last=None, cuda_graphs=False, compile=True)]"
)


def _pytest(place: Place, name: str, limit_s: float, *arguments: str) -> Command:
    plugins = ("xdist", "pytest_timeout", "pytest_asyncio.plugin")
    return Command(
        name,
        (
            *("-m", "pytest", *(word for plugin in plugins for word in ("-p", plugin))),
            # Other versions of libraries have warnings of their own.
            *("-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings="),
            *("-rA", "--junitxml", str(place.out / f"{name}.xml"), "-m", "gpu", *arguments),
        ),
        limit_s,
    )


def _tests(place: Place) -> list[Command]:
    return [_pytest(place, "tests", 150, "-n", "4", ON_CUDA, "--deselect", COMPILES)]


def _timed(place: Place, name: str, limit_s: float, *arguments: str) -> Command:
    """Return a run of benchmarks/networks.py; a row may take most of the limit."""
    common = ("--device", place.device, "--out", str(place.out / f"{name}.json"))
    row = ("--limit-s", str(limit_s * 0.6))
    return Command(name, ("benchmarks/networks.py", *common, *row, *arguments), limit_s)


def _networks(place: Place) -> list[Command]:
    half, short = ("--dtype", "float16"), ("--seconds", "0.2")
    drawing = ("--only", "UNet", "decoder")
    plain = ("--variant", "eager", "no_sdpa", "--batch", "8", "32")
    fast = ("--variant", "channels_last", "cuda_graphs", "--batch", "1", "8", "16", "32")
    return [
        _timed(place, "networks-float16", 140, *half, *short, *fast),
        _timed(place, "networks-eager", 90, *half, *short, *plain),
        _timed(
            place,
            "networks-64",
            60,
            *(*half, *short, *drawing, "--variant", "channels_last", "--batch", "64"),
        ),
        _timed(
            place,
            "networks-bfloat16",
            50,
            *("--dtype", "bfloat16", *short, *drawing),
            *("--variant", "channels_last", "--batch", "32"),
        ),
        _timed(place, "networks-float32", 60, *short, "--batch", "1", "8", "32"),
    ]


def _compile(place: Place) -> list[Command]:
    how = ("--dtype", "float16", "--variant", "compile", "--batch", "16", "--seconds", "0.2")
    return [
        _timed(place, "compile-decoder", 150, *how, "--only", "decoder"),
        _timed(place, "compile-unet", 240, *how, "--only", "UNet"),
        _pytest(place, "compile-tests", 240, COMPILES),
    ]


def _precision(place: Place) -> list[Command]:
    where = ("--models", str(place.models), "--device", place.device, "--frames", "16")
    out = ("--out", str(place.out / "precision.json"))
    return [Command("precision", ("benchmarks/precision.py", *where, *out), 60)]


def _engine(place: Place) -> list[Command]:
    where = ("--models", str(place.models), "--device", place.device, "--limit-s", "50")
    out = ("--out", str(place.out / "engine.json"))
    return [Command("engine", ("benchmarks/engine_gpu.py", *where, *out), 150)]


def _media(place: Place) -> tuple[str, ...]:
    media = place.kit / "media"
    return ("--video", str(media / "face.mp4"), "--audio", str(media / "speech.wav"))


def _job(place: Place) -> list[Command]:
    where = ("--models", str(place.models), "--device", place.device, *_media(place))
    out = ("--out", str(place.out / "job.json"))
    return [Command("job", ("benchmarks/job_gpu.py", *where, *out), 140)]


def _serve(place: Place) -> list[Command]:
    where = ("--models", str(place.models), "--device", place.device, *_media(place))
    out = ("--out", str(place.out / "serve.json"))
    return [Command("serve", ("benchmarks/serve_gpu.py", *where, *out), 200)]


def _weights(place: Place) -> list[Command]:
    arguments = (str(place.models), "--device", place.device)
    return [Command("weights", ("benchmarks/random_weights.py", *arguments), 90)]


def _machine(place: Place) -> list[Command]:
    return [Command("machine", ("gpu_kit/machine.py", str(place.out / "machine.json")), 60)]


MACHINE = Piece("machine", _machine)
WEIGHTS = Piece("weights", _weights)
PIECES = (
    Piece("tests", _tests),
    Piece("networks", _networks),
    Piece("precision", _precision, needs_weights=True),
    Piece("engine", _engine, needs_weights=True),
    Piece("job", _job, needs_weights=True, parts=("base", "media")),
    Piece("serve", _serve, needs_weights=True, parts=("serve", "base", "media")),
    Piece("compile", _compile),
)
