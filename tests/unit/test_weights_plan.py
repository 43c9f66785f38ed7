"""Weight files over the layers of an image: the plan, and what is fetched by it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lipsync.commands.weights import too_long
from musetalk_pipeline.errors import ModelLoadFailed
from musetalk_pipeline.weights.listed import read_list

ROOT = Path(__file__).resolve().parents[2]
PLAN, FETCH = ROOT / "scripts" / "weights_plan.py", ROOT / "cluster" / "image" / "fetch-layer.sh"
HUB = "https://hub.example"


def entry(path: str, n_bytes: int, source: str | None = None, **other: Any) -> dict[str, Any]:
    digest = hashlib.sha256(path.encode()).hexdigest()
    source = source or f"lab/model@main//{path}"
    return {"path": path, "source": source, "bytes": n_bytes, "sha256": digest, **other}


def plan(folder: Path, *entries: dict[str, Any], layer_gb: str = "10", layers: str = "16") -> str:
    """Plan into `folder`; return what is said on standard error, nothing if it was planned."""
    wanted = folder / "list.json"
    wanted.write_text(json.dumps({"files": entries}))
    words = [sys.executable, PLAN, wanted, folder, "--hub", HUB]
    done = subprocess.run(
        [*words, "--layer-gb", layer_gb, "--layers", layers],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == bool(done.stderr), done.stderr
    return done.stderr


def test_files_fill_layers_below_the_limit_and_each_has_one(tmp_path: Path) -> None:
    sizes = {"a": 7_000, "b": 6_000, "c": 3_000, "d": 2_500, "e": 1_500}
    assert not plan(tmp_path, *(entry(p, n) for p, n in sizes.items()), layer_gb="0.00001")
    files = json.loads((tmp_path / "weights.json").read_text())["files"]
    held: dict[int, int] = {}
    for file in files:
        held[file["layer"]] = held.get(file["layer"], 0) + file["bytes"]
    assert {file["path"]: file["bytes"] for file in files} == sizes
    assert held == {1: 10_000, 2: 10_000}
    fetched = "".join((tmp_path / f"layer-{layer}.hub").read_text() for layer in held)
    assert fetched.count("output = ") == len(sizes)
    assert f'url = "{HUB}/lab/model/resolve/main/a"\noutput = "a"\n' in fetched
    assert [file.path for file in read_list(tmp_path / "weights.json")] == list("abcde")


def test_a_file_from_elsewhere_is_not_among_those_that_get_the_token(tmp_path: Path) -> None:
    assert not plan(tmp_path, entry("a", 5), entry("b", 5, source="https://other.example/b.bin"))
    assert "other.example" not in (tmp_path / "layer-1.hub").read_text()
    assert 'url = "https://other.example/b.bin"' in (tmp_path / "layer-1.elsewhere").read_text()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([entry("a", 11_000)], "LAYER_GB"),
        ([entry(str(n), 6_000) for n in range(3)], "need 3 layers"),
        ([entry("a", 1), entry("a", 1)], "one path twice"),
        ([], "names no file"),
        ([entry("../a", 1)], "has to be below models/"),
        ([entry("/etc/a", 1)], "has to be below models/"),
        ([entry("a", 0)], "positive number"),
        ([entry("a", 1, sha256="abc")], "64 hexadecimal digits"),
        ([entry("a", 1, source="file:///etc/passwd")], "has to be a URL"),
        ([entry("a", 1, source='https://x.example/"\noutput = "/etc/a')], "has to be a URL"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_that_cannot_become_layers_is_refused(
    tmp_path: Path, entries: list[dict[str, Any]], said: str
) -> None:
    assert said in plan(tmp_path, *entries, layer_gb="0.00001", layers="2")
    assert not (tmp_path / "weights.json").exists()


def test_a_disk_without_room_is_noticed_before_anything_is_fetched(tmp_path: Path) -> None:
    said = plan(tmp_path, entry("a", 10**15), layer_gb="1e7")
    assert "the build needs 2000002.0 GB" in said


def fetch(
    folder: Path, plan_files: dict[str, str], secret: Path
) -> subprocess.CompletedProcess[str]:
    """Run the script of a layer, with its plan in another folder than the image has it in."""
    script = folder / "fetch-layer"
    script.write_text(FETCH.read_text().replace("/plan/", f"{folder}/plan-"))
    script.chmod(0o755)
    for name, text in plan_files.items():
        (folder / f"plan-layer-{name}").write_text(text)
    return subprocess.run(
        [script, "1"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HUB_TOKEN_FILE": str(secret)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_layer_is_fetched_and_compared_with_its_digests(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"weights")
    config = f'url = "file://{tmp_path}/source"\noutput = "folder/a"\n'
    digest = hashlib.sha256(b"weights").hexdigest()
    files = {"1.elsewhere": config, "1.sha256": f"{digest}  folder/a\n"}
    done = fetch(tmp_path, files, tmp_path / "none")
    assert done.returncode == 0, done.stderr
    fetched = tmp_path / "models" / "folder" / "a"
    assert fetched.read_bytes() == b"weights"
    # The container's user is another one.
    assert (fetched.stat().st_mode & 0o004, fetched.parent.stat().st_mode & 0o005) == (0o004, 0o005)
    (tmp_path / "source").write_bytes(b"others")
    done = fetch(tmp_path, files, tmp_path / "none")
    assert done.returncode != 0
    assert "folder/a: FAILED" in done.stdout


def test_a_layer_without_files_is_empty(tmp_path: Path) -> None:
    done = fetch(tmp_path, {}, tmp_path / "none")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "models").exists()


def test_a_file_that_is_not_a_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.json").write_text('{"files": [{"path": "a"}]}')
    with pytest.raises(ModelLoadFailed, match=r"weights\.json is not a list of weight files"):
        read_list(tmp_path / "weights.json")


@pytest.mark.parametrize(
    ("environ", "expected_s", "said"),
    [
        ({}, 9000.0, None),
        ({"RUNPOD_POD_ID": "x"}, 400.0, None),
        ({"RUNPOD_POD_ID": "x"}, 500.0, "set RUNPOD_INIT_TIMEOUT to 1000."),
        ({"RUNPOD_INIT_TIMEOUT": "800"}, 700.0, None),
        ({"RUNPOD_INIT_TIMEOUT": "800"}, 900.0, "ready after 800 s"),
    ],
)
def test_a_worker_that_runpod_would_stop_while_it_verifies_says_what_to_set(
    environ: dict[str, str], expected_s: float, said: str | None
) -> None:
    found = too_long(expected_s, environ)
    assert found is None if said is None else said in str(found)
