"""Run pieces of the measurements on a machine with a CUDA GPU and no network.

    gpu_kit/run.sh [PIECE...] [--out DIR] [--parts DIR] [--total-s S]

Unpacks the kit's parts (scripts/gpu_kit.sh) if they are not yet, puts them on the path of each
piece's commands, installs nothing, and runs the pieces one after the other. Every command has a
time limit and a log; one that fails or runs into its limit does not stop the next. Figures are
written to `--out` as they come. Ends with a table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_kit.pieces import LONGEST_S, MACHINE, PIECES, WEIGHTS, Command, Piece, Place

ROOT = Path(__file__).resolve().parents[1]
LEAST_S = 5.0  # no command is started with less time
GRACE_S = 15.0  # for a command that is told to stop
BY_NAME = {piece.name: piece for piece in PIECES}
SAMPLE = ("--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader,nounits")
SAMPLE_MS = 250


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended: "ok", "failed", "timed out" or "left out"."""

    command: str
    status: str
    wall_s: float
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 if all of it went well."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    place = Place(
        out=options.out.absolute(),
        kit=options.kit.absolute(),
        models=(options.models or options.kit / "models").absolute(),
        device=options.device,
    )
    deadline = time.monotonic() + options.total_s
    note = unpack(options.parts, place.kit)
    if note:
        print(note, flush=True)
    done: list[Done] = []
    for piece in chosen(options.piece, place):
        for command in piece.commands(place):
            done.append(run(command, piece, place, deadline))
            print(f"{done[-1].command}: {done[-1].status}, {done[-1].wall_s:.0f} s", flush=True)
            keep(place.out, done, options.bundle)
    print(table(done, place.out))
    print(json.dumps({"done": [asdict(one) for one in done], "out": str(place.out)}))
    return 0 if all(one.status == "ok" for one in done) else 1


def chosen(names: Sequence[str], place: Place) -> list[Piece]:
    """Return the pieces of those names; the machine's facts first, and the weights once before the
    first piece that needs them, if they are not there.
    """
    found = [MACHINE]
    for name in names or BY_NAME:
        piece = BY_NAME[name]
        is_missing = not (place.models / "face-parse-bisent" / "79999_iter.pth").is_file()
        if piece.needs_weights and is_missing and WEIGHTS not in found:
            found.append(WEIGHTS)
        found.append(piece)
    return found


def unpack(parts: Path, kit: Path) -> str:
    """Unpack each part that lies in `parts` and is not yet in `kit`; return what was done."""
    notes = []
    for archive in sorted(parts.glob("*.tar.xz")):
        name = archive.name.removesuffix(".tar.xz")
        stamp = kit / f"{name}.stamp"
        size = str(archive.stat().st_size)
        if stamp.is_file() and stamp.read_text() == size:
            continue
        kit.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with tarfile.open(archive) as packed:
            packed.extractall(kit, filter="data")
        compile_site(kit / name / "site")
        stamp.write_text(size)
        notes.append(f"unpacked {name} in {time.monotonic() - started:.0f} s")
    return ", ".join(notes)


def compile_site(site: Path) -> None:
    """Compile packages with all cores, before several processes at once do it for themselves."""
    command = [sys.executable, "-m", "compileall", "-q", "-q", "-j", "0", str(site)]
    subprocess.run(command, check=False, timeout=120, stdout=subprocess.DEVNULL)


def environment(piece: Piece, place: Place) -> dict[str, str]:
    """Return what a piece's commands are started with."""
    sites = [str(place.kit / part / "site") for part in piece.parts]
    bins = [str(place.kit / part / "bin") for part in piece.parts]
    old = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    cache = place.kit / "cache"
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*sites, str(ROOT), *old]),
        "PATH": os.pathsep.join([*bins, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }


def run(command: Command, piece: Piece, place: Place, deadline: float) -> Done:
    """Run one command within its limit and what is left of the time for all."""
    missing = [part for part in piece.parts if not (place.kit / part / "site").is_dir()]
    if missing:
        return Done(command.name, "left out", 0.0, f"the part {missing[0]} is not unpacked")
    left_s = deadline - time.monotonic()
    if left_s < LEAST_S:
        return Done(command.name, "left out", 0.0, "no time is left")
    limit_s = min(command.limit_s, left_s)
    log = place.out / f"{command.name}.log"
    started = time.monotonic()
    with log.open("wb") as sink, gpu_samples(place.out / f"{command.name}.csv"):
        process = subprocess.Popen(
            [sys.executable, *command.arguments],
            cwd=ROOT,
            env=environment(piece, place),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    wall_s = round(time.monotonic() - started, 1)
    if code is None:
        return Done(command.name, "timed out", wall_s, f"after {limit_s:.0f} s")
    if code:
        return Done(command.name, "failed", wall_s, f"exit code {code}; {last_line(log)}")
    return Done(command.name, "ok", wall_s)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started: first as Ctrl-C does, so that it can clean up."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def gpu_samples(path: Path) -> Iterator[None]:
    """Write the GPU's use in percent, memory in MiB and power in watts, some times a second."""
    command = ["nvidia-smi", *SAMPLE, "-lms", str(SAMPLE_MS)]
    try:
        with path.open("wb") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.DEVNULL)
    except OSError:  # there is no such program
        path.unlink(missing_ok=True)
        yield
        return
    try:
        yield
    finally:
        process.kill()
        process.wait()


def keep(out: Path, done: Sequence[Done], bundle: Path | None) -> None:
    """Write all figures so far into one file, and all files into one archive, if it is named."""
    summary = {"done": [asdict(one) for one in done], "results": results(out)}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if bundle is None:
        return
    unfinished = bundle.with_name(bundle.name + ".part")
    with tarfile.open(unfinished, "w:gz") as archive:
        archive.add(out, arcname=out.name)
    unfinished.replace(bundle)


def results(out: Path) -> dict[str, Any]:
    """Return what the commands have written, by the files' names, and the GPU's use meanwhile."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*.json")):
        if path.name != "summary.json":
            with contextlib.suppress(ValueError):
                found[path.stem] = json.loads(path.read_text())
    for path in sorted(out.glob("*.xml")):
        with contextlib.suppress(ElementTree.ParseError):
            found[path.stem] = test_outcomes(path)
    found["gpu_use"] = {
        path.stem: use for path in sorted(out.glob("*.csv")) if (use := use_of(path))
    }
    return found


def test_outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """Return the outcome of each test in a JUnit file, and its seconds."""
    outcomes: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        bad = next((one for one in case if one.tag in ("failure", "error", "skipped")), None)
        outcomes[case.get("name", "")] = {
            "outcome": "passed" if bad is None else bad.tag,
            "seconds": float(case.get("time", 0)),
            "message": "" if bad is None else (bad.get("message") or "")[:500],
        }
    return outcomes


def use_of(path: Path) -> dict[str, float] | None:
    """Return mean use in percent, and the most memory and power, of a file of samples."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            use_percent, mib, watts = (float(word) for word in line.split(","))
            rows.append((use_percent, mib, watts))
    if not rows:
        return None
    use, memory, power = zip(*rows, strict=True)
    return {
        "mean_use_percent": round(sum(use) / len(use), 1),
        "busy_samples_share": round(sum(one > 0 for one in use) / len(use), 3),
        "most_memory_mib": max(memory),
        "most_power_w": max(power),
        "samples": len(use),
    }


def table(done: Sequence[Done], out: Path) -> str:
    """Return how each command ended, and the figures that matter most."""
    lines = ["", f"{'command':<20} {'status':<10} {'s':>6}  note"]
    lines += [f"{d.command:<20} {d.status:<10} {d.wall_s:>6.1f}  {d.note[:160]}" for d in done]
    lines.append("")
    # A file that is not as expected costs the lines after it, not the table.
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
        for line in headlines(results(out)):
            lines.append(line)
    return "\n".join(lines)


def headlines(found: dict[str, Any]) -> Iterator[str]:
    """Yield short lines with the figures of each piece that has run."""
    machine = found.get("machine", {})
    if machine:
        yield f"{machine['gpu'].get('nvidia-smi')}; torch {machine['gpu'].get('torch')}"
    tests = {**found.get("tests", {}), **found.get("compile-tests", {})}
    for name, outcome in tests.items():
        note = outcome["message"].partition("\n")[0][:150]
        yield f"{outcome['outcome']:<8} {outcome['seconds']:>6.1f} s  {name}  {note}"
    for name, document in found.items():
        for row in document.get("timings", []) if isinstance(document, dict) else []:
            yield f"{name}: " + _timing(row)
    for row in found.get("precision", {}).get("rows", []):
        figures = f"mean {row['mean']:.3g}, largest {row['largest']:.3g} {row['of']}"
        yield f"precision: {row['stage']} {row['dtype']} {figures}"
    for row in found.get("engine", {}).get("rows", []):
        yield "engine: " + json.dumps(row)
    for run_row in found.get("job", {}).get("runs", []):
        wanted = ("run", "wall_s", "cpu_s", "engine_share", "networks_share", "stage_seconds")
        yield "job: " + json.dumps({k: run_row[k] for k in wanted if k in run_row})
    for step in found.get("serve", {}).get("steps", []):
        yield "serve: " + json.dumps({k: v for k, v in step.items() if k != "jobs"})
    for name, use in found.get("gpu_use", {}).items():
        yield f"gpu use, {name}: {json.dumps(use)}"


def _timing(row: dict[str, Any]) -> str:
    where = f"{row['network']} {row['variant']} batch {row['batch']}"
    if "failed" in row:
        return f"{where} failed: {row['failed'][:100]}"
    return (
        f"{where} {row['wall_ms']:.1f} ms {row['share_of_matmul']:.0%} "
        f"{row['beyond_weights_mib'] or 0:.0f} MiB, first {row['first_s']:.1f} s"
    )


def last_line(log: Path) -> str:
    """Return the end of a log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_kit/run.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed = ", ".join(BY_NAME)
    parser.add_argument("piece", nargs="*", metavar="PIECE", help=f"{listed}; all unless named")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", help="for the figures")
    parser.add_argument(
        "--parts", type=Path, default=ROOT / "out" / "gpu_kit", help="where the packed parts are"
    )
    parser.add_argument(
        "--kit", type=Path, default=Path("/tmp/lipsync-gpu-kit"), help="where they are unpacked"
    )
    parser.add_argument("--models", type=Path, help="weights; random ones are made unless named")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--total-s", type=float, default=LONGEST_S, help="for all pieces together")
    parser.add_argument(
        "--bundle", type=Path, help="a .tar.gz of the figures, renewed as they come"
    )
    options = parser.parse_args(arguments)
    strangers = [name for name in options.piece if name not in BY_NAME]
    if strangers:
        parser.error(f"{strangers[0]!r} is not one of {listed}")
    return options


if __name__ == "__main__":
    sys.exit(main())
