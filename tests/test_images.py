"""The container image: what is written about it, and the check that builds and runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE, BAKE = ROOT / "Dockerfile.gpu", ROOT / "docker-bake.hcl"
sys.path.insert(0, str(ROOT / "scripts"))
from image_check import Wrong, contents  # noqa: E402
from image_check.store import Layer  # noqa: E402

from musetalk_pipeline.weights.manifest import published  # noqa: E402


def test_the_bake_file_sets_only_arguments_that_the_dockerfile_has() -> None:
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE.read_text(), re.M))
    blocks = re.findall(r"args\s*=\s*\{(.*?)\}", BAKE.read_text(), re.S)
    given = {name for block in blocks for name in re.findall(r"(\w+)\s*=", block)}
    assert len(given) > 4
    assert given <= declared


def test_the_bake_file_names_only_stages_that_there_are() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE.read_text(), re.M))
    lines = re.findall(r"^\s+target\s+= (.+)$", BAKE.read_text(), re.M)
    named = set(re.findall(r'"([\w-]+)"', " ".join(lines)))
    assert named == {"worker", "cluster-node"}
    assert named <= stages


def test_code_comes_after_packages_so_that_a_change_of_it_moves_little() -> None:
    worker = DOCKERFILE.read_text().partition(" AS worker\n")[2].partition("FROM ")[0]
    assert worker.index("COPY --from=builder") < worker.index("COPY lipsync")
    assert "apt-get" not in worker and "fetch-layer" not in worker
    # What differs from build to build comes last.
    assert worker.index("ARG BUILD_TIME") > worker.index("COPY serve_app")


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["serve"], "lipsync serve serve_config.gpu.yaml"),
        ([], "lipsync serve serve_config.gpu.yaml"),
        (["serve", "mine.yaml"], "lipsync serve mine.yaml"),
        (["run-job"], "lipsync run-job"),
        (["run_job"], "lipsync run-job"),
        (["bench", "--json"], "lipsync bench --json"),
        (["salad-queue"], "salad-queue serve_config.gpu.yaml"),
        (["salad-queue", "mine.yaml"], "salad-queue mine.yaml"),
        (["lipsync", "doctor"], "lipsync doctor"),
    ],
)
def test_the_first_argument_is_what_a_container_does(
    tmp_path: Path, words: list[str], expected: str
) -> None:
    for name in ("lipsync", "salad-queue"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    done = entered(tmp_path, *words)
    assert done.stdout.strip() == expected, done.stderr


def entered(
    programs: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the entry point, with the programs of a folder in front of the system's."""
    return subprocess.run(
        [ROOT / "cluster" / "image" / "entrypoint.sh", *words],
        env={"PATH": f"{programs}:/usr/bin:/bin", "SERVE_CONFIG": "serve_config.gpu.yaml"}
        | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("entry", ["serve", "run-job", "salad-queue"])
def test_weights_inside_are_verified_before_anything_starts(tmp_path: Path, entry: str) -> None:
    program = tmp_path / "lipsync"
    program.write_text('#!/bin/sh\necho lipsync "$@"\n[ "$1" != weights ]\n')
    program.chmod(0o755)
    done = entered(tmp_path, entry, env={"WEIGHTS_LIST": "/plan/weights.json"})
    assert done.stdout.strip() == "lipsync weights verify --list /plan/weights.json"
    assert done.returncode == 3


def test_the_list_of_embedded_weights_is_that_of_the_published_ones() -> None:
    entries = json.loads((ROOT / "cluster" / "image" / "musetalk-v15.json").read_text())["files"]
    assert [(each["path"], each["source"], each["bytes"], each["sha256"]) for each in entries] == [
        (file.path, file.source, file.size_bytes, file.sha256) for file in published("v15")
    ]


def test_an_image_that_has_grown_is_refused_with_what_has_grown() -> None:
    before = json.loads(contents.SIZES.read_text())
    contents.check_growth(before, before)
    contents.check_growth(before | {"all": round(before["all"] * 1.04)}, before)
    larger = before | {"all": round(before["all"] * 1.06), "ray": before["ray"] + 77}
    with pytest.raises(Wrong, match="'ray': 77"):
        contents.check_growth(larger, before)


def test_a_change_of_code_that_moves_packages_is_refused() -> None:
    system, packages = Layer("sha256:a", 900_000_000, ""), Layer("sha256:b", 2_000_000_000, "")
    code, changed = Layer("sha256:c", 3_000_000, ""), Layer("sha256:d", 4_000_000, "")
    assert contents.moved_bytes([system, packages, code], [system, packages, changed]) == 4_000_000
    with pytest.raises(Wrong, match=r"2004\.0 MB"):
        contents.moved_bytes([system, code], [system, packages, changed])


def test_secrets_are_found_in_files_and_in_the_description(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "notes").write_bytes(b"nothing here")
    assert contents.secrets_in(tmp_path, b"{}") == []
    (tmp_path / "app" / "notes").write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert contents.secrets_in(tmp_path, contents.PLANTED) == [
        "its environment or history",
        "app/notes",
    ]


def test_packages_lose_what_only_compilers_and_tests_need(tmp_path: Path) -> None:
    site = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    cuda = "nvidia/cu13/lib"
    gone = ["torch/include/a.h", "pip/x.py", "thing/tests/test_a.py", "thing/lib.a", "thing/a.pyi"]
    gone += ["triton/a.py", f"{cuda}/libcusolverMg.so.12", f"{cuda}/libnvrtc.alt.so.13"]
    kept = ["torch/testing/__init__.py", "thing/__init__.py", "thing/__pycache__/a.pyc"]
    kept += [f"{cuda}/libcusolver.so.12", f"{cuda}/libnvrtc.so.13", f"{cuda}/libcupti.so.13"]
    for name in gone + kept:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).touch()
    (tmp_path / "venv" / "bin").mkdir()
    subprocess.run([ROOT / "scripts" / "slim-venv.sh", tmp_path / "venv"], check=True)
    assert [name for name in gone if (site / name).exists()] == []
    assert [name for name in kept if not (site / name).exists()] == []
