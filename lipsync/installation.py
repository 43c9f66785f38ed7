"""Checks of what is installed: Python, Ray, the media tools, the GPU's driver and torch's build."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from lipsync.findings import Finding
from lipsync.project import PROJECT
from serve_app.launcher.machine import has_gpu

TOOL_TIMEOUT_S = 10.0
TORCH_TIMEOUT_S = 120.0  # a cold disk; the first call of CUDA takes seconds by itself
SET_UP = f"Run `{PROJECT / 'scripts' / 'setup.sh'} base`."
WANTED_PYTHON = (3, 11)
PROBE_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
capability = torch.cuda.get_device_capability() if cuda else None
print(json.dumps([torch.version.cuda, cuda, capability, torch.cuda.get_arch_list()]))
"""


def python() -> Finding:
    """Compare the version of Python with the one that the project is made for."""
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if sys.version_info[:2] == WANTED_PYTHON:
        return Finding("Python", "ok", f"{found} at {sys.executable}")
    wanted = ".".join(map(str, WANTED_PYTHON))
    remedy = f"Install Python {wanted}. {SET_UP}"
    return Finding("Python", "missing", f"{found}, but {wanted} is needed", remedy)


def ray() -> Finding:
    """Compare the version of Ray with the pinned one."""
    pinned = _pin("ray[serve]")
    try:
        found = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Finding("Ray", "missing", "not installed", SET_UP)
    if pinned not in (None, found):
        return Finding("Ray", "warning", f"{found}, but {pinned} is pinned", SET_UP)
    return Finding("Ray", "ok", found)


def media_tools() -> Iterator[Finding]:
    """Find the programs that read media and fetch from servers that break HTTP."""
    for tool in ("ffmpeg", "ffprobe"):
        path = shutil.which(tool)
        if path is None:
            remedy = "Install it: `sudo apt-get install -y ffmpeg`."
            yield Finding(tool, "missing", "not on PATH", remedy)
            continue
        version = re.search(r"version (\S+)", _answer([path, "-version"]) or "")
        if version is None:
            yield Finding(tool, "missing", f"{path} does not run", "Install ffmpeg again.")
        else:
            yield Finding(tool, "ok", f"{version[1]} at {path}")
    curl = shutil.which("curl")
    if curl is None:
        remedy = "Install it: `sudo apt-get install -y curl`."
        found = "not on PATH, so servers that break HTTP cannot be read"
        yield Finding("curl", "warning", found, remedy)
    else:
        yield Finding("curl", "ok", curl)


def gpu(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Examine the GPU and its driver, and whether torch can use them."""
    build = _torch_build()
    if build is None:
        yield Finding("torch", "missing", "not installed", SET_UP)
        return
    if not has_gpu(environ):
        yield Finding("GPU", "ok", "none; the networks run on the CPU")
        yield Finding("torch", "ok", build)
        return
    yield _driver()
    yield _torch(build)


def _driver() -> Finding:
    fields = "name,memory.total,driver_version,compute_cap"
    answer = _answer(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    if not answer:
        remedy = "Install the NVIDIA driver, 580 or newer, or mount it into the container."
        return Finding("GPU", "warning", "a device, but nvidia-smi does not answer", remedy)
    shown = []
    for line in answer.splitlines():
        name, memory, driver, capability = (part.strip() for part in line.split(","))
        shown.append(f"{name}, {memory}, driver {driver}, compute capability {capability}")
    return Finding("GPU", "ok", "; ".join(shown))


def _torch(build: str) -> Finding:
    """Load CUDA in another process, so that this one ends quickly and holds no GPU memory."""
    rebuild = "Remove .venv and set up again: `rm -rf .venv && make install`."
    if build.endswith("+cpu"):
        return Finding("torch", "warning", f"{build} cannot use the GPU", rebuild)
    answer = _answer([sys.executable, "-c", PROBE_TORCH], TORCH_TIMEOUT_S)
    if not answer:
        return Finding("torch", "missing", f"{build} cannot be imported", rebuild)
    cuda, is_available, capability, architectures = json.loads(answer.splitlines()[-1])
    shown = f"{build}, CUDA {cuda}"
    if not is_available:
        remedy = f"Install a driver for CUDA {cuda}, or set up again with TORCH_BUILD=cu126."
        return Finding("torch", "warning", f"{shown} does not see the GPU", remedy)
    newest = max(
        (int(found[1]) for one in architectures if (found := re.match(r"sm_(\d+)", one))), default=0
    )
    if newest and 10 * capability[0] + capability[1] > newest + 9 - newest % 10:
        return Finding("torch", "warning", f"{shown} is too old for this GPU", rebuild)
    return Finding("torch", "ok", f"{shown}, sees the GPU")


def _torch_build() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _pin(package: str) -> str | None:
    try:
        text = (PROJECT / "requirements" / "base.in").read_text()
    except OSError:  # the image has no requirements
        return None
    found = re.search(rf"^{re.escape(package)}==(\S+)", text, re.MULTILINE)
    return None if found is None else found[1]


def _answer(command: list[str], timeout_s: float = TOOL_TIMEOUT_S) -> str | None:
    """Return what a program prints; None if it does not run, or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def room(name: str, path: Path, needed_bytes: int, least_bytes: int, remedy: str) -> Finding:
    """Compare the free space of the disk of `path` with what is needed and what is the least."""
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    found = f"{free / 1e9:.1f} GB free for {path}"
    if free < least_bytes:
        return Finding(name, "missing", found, remedy)
    if free < needed_bytes:
        return Finding(name, "warning", found, remedy)
    return Finding(name, "ok", found)
