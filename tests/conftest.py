"""Fixtures for every test: generated clips, speech, and a check that nothing is left behind."""

# ruff: noqa: E402 - thread limits must be set before numpy is imported
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy and torch read them

import hashlib
import math
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import psutil
import pytest
import skimage.data
import soundfile
import stamina
from hypothesis import settings
from numpy.typing import NDArray

from tests.children import command_of
from tests.waiting import until

if TYPE_CHECKING:
    from musetalk_pipeline.pipeline import Tools

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
cv2.setNumThreads(1)

FFMPEG_S = 120
LEFTOVER_GRACE_S = 20.0  # a killed child needs a moment to disappear
# Not scratch of ours: folders of pytest and torch, and Ray's, which lives as long as its cluster.
FOREIGN_TEMP = ("ray", "pytest-of-", "torchinductor_")
SPEECH = Path(
    "usr/share/pocketsphinx/test/data/librivox/sense_and_sensibility_01_austen_64kb-0870.wav"
)
ROOT = Path(__file__).resolve().parents[1]
WEIGHT_MAKER = ROOT.parent / "shared" / "tools" / "make_weights.py"


# A shell that starts the tests in the background lets them ignore SIGINT, and their children too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class ClipSpec:
    """A generated video. `faceless`: frames that show a pattern instead of the face."""

    frames: int = 25
    width: int = 320
    height: int = 240
    fps: Fraction = Fraction(25)
    faceless: frozenset[int] = frozenset()
    is_moving: bool = True
    face_share: float = 0.62  # of the frame's height, hair to chin
    face_at: tuple[float, float] = (0.5, 0.5)  # the face's middle, in frame widths and heights
    rotation: int = 0  # degrees clockwise that a player has to turn the picture by
    is_variable_rate: bool = False  # every other frame lasts twice as long
    ffmpeg_output: tuple[str, ...] = ()
    suffix: str = ".mp4"


ClipFactory = Callable[..., Path]
SpeechFactory = Callable[..., Path]


@pytest.fixture
def no_waits() -> Iterator[None]:
    """Retries follow each other at once; their number stays what it is."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


@pytest.fixture(scope="session", autouse=True)
def private_temp() -> Iterator[Path]:
    """Send every temporary file of this session to a folder that can be looked into.

    The name is short: Ray puts sockets below it, whose paths may have 107 bytes.
    """
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix="t", dir=before[1] or "/tmp"))
    tempfile.tempdir, os.environ["TMPDIR"] = str(folder), str(folder)
    yield folder
    tempfile.tempdir = before[0]
    if before[1] is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before[1]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_leftovers(private_temp: Path) -> Iterator[None]:
    """Fail a test that leaves a child process or a temporary file behind."""
    children, files = _children(), _temp_files(private_temp)
    yield

    def left() -> tuple[list[str], list[str]]:
        processes = [p for p in _children() - children if _is_ours(p)]
        commands = [" ".join(command_of(p))[:200] for p in processes]
        return commands, sorted(_temp_files(private_temp) - files)

    until(
        lambda: not any(left()),
        lambda: "processes {} and files {} have not gone".format(*left()),
        LEFTOVER_GRACE_S,
        pause_s=0.05,
    )


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _is_ours(process: psutil.Process) -> bool:
    """Whether a test must not leave it: a child of this process, or a media tool of any child.

    Ray starts and stops worker processes below its own as it likes.
    """
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        is_media = process.name() in ("ffmpeg", "ffprobe", "prlimit", "setpriv")
        is_ray = any(
            "ray" in Path(part).parts or part.startswith("ray::") for part in command_of(process)
        )
        return is_media or (
            process.ppid() == os.getpid() and not is_ray and not _is_servant(process)
        )
    except psutil.Error:
        return False


def _is_servant(process: psutil.Process) -> bool:
    """multiprocessing's resource tracker and torch's compile workers live as long as the process
    that they serve.
    """
    servants = ("resource_tracker", "torch/_inductor/compile_worker")
    return any(name in part for part in command_of(process) for name in servants)


def _temp_files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(FOREIGN_TEMP)}


@pytest.fixture(scope="session")
def seeded_weights() -> Path:
    """A models folder of small seeded random weights in the published layout; those that the
    golden set was made with. Kept from run to run; only to be read.
    """
    if not WEIGHT_MAKER.exists():
        pytest.skip("needs ../shared/tools/make_weights.py")
    # What decides the numbers: the maker, and torch's generator.
    state = hashlib.sha256(WEIGHT_MAKER.read_bytes() + version("torch").encode()).hexdigest()
    kept = ROOT / ".cache" / "tests" / f"weights-{state[:16]}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="making-", dir=kept.parent))
        command = [sys.executable, str(WEIGHT_MAKER), str(folder), "tiny", "--seed", "1234"]
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
        try:
            subprocess.run(command, check=True, timeout=240, stdout=subprocess.DEVNULL, env=quiet)
            folder.rename(kept)
        except OSError:
            if not kept.exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return kept / "models"


@pytest.fixture(scope="session")
def tools() -> Tools:
    """What a job in one process needs, without weights: the embedded detector and engine."""
    from musetalk_pipeline.engines import make_audio_encoder, make_engine
    from musetalk_pipeline.faces import make_detector
    from musetalk_pipeline.pipeline import Tools

    return Tools(make_detector("mesh"), make_engine("warp"), make_audio_encoder("warp"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipFactory:
    """Return `clip(**ClipSpec fields) -> Path`; the same clip is made once per session.

    The file is shared: copy it before changing it.
    """
    folder = tmp_path_factory.mktemp("clips")
    made: dict[ClipSpec, Path] = {}

    def make(**fields: object) -> Path:
        spec = ClipSpec(**fields)  # type: ignore[arg-type]
        if spec not in made:
            path = folder / f"clip{len(made)}{spec.suffix}"
            _write_clip(spec, path)
            made[spec] = path
        return made[spec]

    return make


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> SpeechFactory:
    """Return `speech(seconds, rate=16000, channels=1, silence=False) -> Path` of a WAV file."""
    folder = tmp_path_factory.mktemp("speech")

    def make(seconds: float, rate: int = 16_000, channels: int = 1, silence: bool = False) -> Path:
        path = folder / f"{seconds}-{rate}-{channels}-{silence}.wav"
        if not path.exists():
            count = round(seconds * rate)
            mono = np.zeros(count, np.float32) if silence else _spoken(count, rate)
            soundfile.write(path, np.repeat(mono[:, None], channels, 1), rate, subtype="PCM_16")
        return path

    return make


def _spoken(count: int, rate: int) -> NDArray[np.float32]:
    """Return `count` samples of speech, repeated as often as needed."""
    voice, voice_rate = _voice()
    if voice_rate != rate:
        positions = np.arange(int(len(voice) * rate / voice_rate)) * voice_rate / rate
        voice = np.interp(positions, np.arange(len(voice)), voice).astype(np.float32)
    return np.resize(voice, count)


@cache
def _voice() -> tuple[NDArray[np.float32], int]:
    """Return real speech where the machine has some, else espeak-ng's, else a buzz that opens and
    closes like syllables do.
    """
    for root in (Path("/"), *sorted(ROOT.glob(".cache/*"))):
        if (root / SPEECH).is_file():
            return soundfile.read(root / SPEECH, dtype="float32")
    if espeak := shutil.which("espeak-ng"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "voice.wav"
            sentence = "The quick brown fox jumps over the lazy dog, and away over the hills."
            subprocess.run([espeak, "-w", path, sentence], check=True, timeout=FFMPEG_S)
            return soundfile.read(path, dtype="float32")
    time_s = np.arange(16_000 * 4) / 16_000
    buzz = np.sign(np.sin(2 * np.pi * 120 * time_s)) * 0.3
    syllables = np.clip(np.sin(2 * np.pi * 1.7 * time_s), 0, 1) ** 2
    return (buzz * syllables).astype(np.float32), 16_000


def _write_clip(spec: ClipSpec, path: Path) -> None:
    # A picture that lies on its side, and a file that says so, show the face upright.
    side = (spec.height, spec.width) if spec.rotation % 180 else (spec.width, spec.height)
    timing = (
        ("-vf", "setpts='(N+floor(N/2))/TB/FR'", "-vsync", "vfr") if spec.is_variable_rate else ()
    )
    command = [
        *("ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "bgr24"),
        *("-s", f"{side[0]}x{side[1]}", "-r", str(spec.fps), "-i", "-", *timing),
        *("-c:v", "libx264", "-preset", "veryfast", "-crf", "12", "-pix_fmt", "yuv420p"),
        *("-threads", "1", *spec.ffmpeg_output, str(path)),
    ]
    data = b"".join(np.ascontiguousarray(_turned(f, spec)).tobytes() for f in draw_frames(spec))
    subprocess.run(command, input=data, check=True, timeout=FFMPEG_S)
    if spec.rotation:
        _say_rotation(path, spec.rotation)


def _say_rotation(path: Path, degrees: int) -> None:
    """Write the turn into the track header of an MP4, as phones do (ISO 14496-12, §8.3.2)."""
    cos, sin = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    matrix = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + len(matrix)] = matrix
    path.write_bytes(data)


def _turned(frame: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.uint8]:
    """Turn a picture against the clock, so that a player's turn sets it upright."""
    return np.rot90(frame, spec.rotation // 90)


def draw_frames(spec: ClipSpec) -> Iterator[NDArray[np.uint8]]:
    """Yield (height, width, 3) uint8 BGR: NASA's public-domain portrait, swaying, or a pattern."""
    portrait = np.ascontiguousarray(skimage.data.astronaut()[:, :, ::-1])
    for frame in range(spec.frames):
        if frame in spec.faceless:
            yield _pattern(spec, frame)
            continue
        turn = 2 * math.pi * frame / 50 if spec.is_moving else 0.0
        scale = spec.height * spec.face_share / 160 * (1 + 0.01 * math.sin(turn))
        # 225, 120: the middle of the face in the portrait, in pixels; 160 high, hair to chin.
        shift_x = spec.face_at[0] * spec.width - 225 * scale + 0.01 * spec.width * math.sin(turn)
        shift_y = spec.face_at[1] * spec.height - 120 * scale + 0.005 * spec.height * math.cos(turn)
        matrix = np.array([[scale, 0, shift_x], [0, scale, shift_y]])
        size = (spec.width, spec.height)
        yield cv2.warpAffine(
            portrait, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )


def _pattern(spec: ClipSpec, frame: int) -> NDArray[np.uint8]:
    """Smooth colour bands that differ from frame to frame, so that each can be told apart."""
    y, x = np.mgrid[0 : spec.height, 0 : spec.width]
    waves = [np.sin((x + y * k) / 40 + frame * (k + 1) * 0.9) for k in range(3)]
    return (128 + 60 * np.dstack(waves)).astype(np.uint8)
