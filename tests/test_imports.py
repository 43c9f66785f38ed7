"""Who may import whom (docs/architecture.md).

The contracts in pyproject.toml speak about the source, imports inside functions included. What an
import really loads is a fact of run time, so that is measured in fresh interpreters.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["importlinter"]["root_packages"]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

SERVICE = ("ray", "fastapi", "pydantic", "starlette", "uvicorn")
HEAVY = ("torch", "av", "cv2", "diffusers", "transformers", "onnxruntime", "ai_edge_litert")
RULES = {
    "musetalk_pipeline": (*SERVICE, *HEAVY),
    "musetalk_pipeline.errors": (*SERVICE, *HEAVY),
    "musetalk_pipeline.options": (*SERVICE, *HEAVY),
    "musetalk_pipeline.plan": (*SERVICE, *HEAVY),
    "musetalk_pipeline.boxes": (*SERVICE, *HEAVY),
    "musetalk_pipeline.pixels.picture": (*SERVICE, *HEAVY),
    "musetalk_pipeline.faces.face_boxes": (*SERVICE, *HEAVY),
    "musetalk_pipeline.engines": (*SERVICE, *HEAVY),
    "musetalk_pipeline.faces": (*SERVICE, *HEAVY),
    # Media, but no networks: what the command line needs before it has chosen an engine.
    "musetalk_pipeline.stages": (*SERVICE, "torch", "diffusers", "transformers"),
    "musetalk_pipeline.pipeline": (*SERVICE, "torch", "diffusers", "transformers"),
    "musetalk_pipeline.__main__": (*SERVICE, "torch", "diffusers", "transformers"),
    "musetalk_pipeline.engines.warp.engine": (*SERVICE, "torch", "diffusers", "transformers"),
    "musetalk_pipeline.engines.musetalk.engine": SERVICE,
    "musetalk_pipeline.weights.fetch": (*SERVICE, "torch"),
    # What the gate in Serve's proxy and the command line load before they have done anything.
    "serve_app.config.settings": ("ray", "fastapi", "starlette", "uvicorn", *HEAVY),
    "serve_app.telemetry.logs": (*SERVICE, *HEAVY),
    "orchestrator": ("torch", "ray", "fastapi", "sqlalchemy"),
    "orchestrator.client": ("torch", "ray", "fastapi", "sqlalchemy", "psycopg"),
    "orchestrator.store.store": ("ray", "fastapi", "starlette", "uvicorn", *HEAVY),
    "orchestrator.__main__": ("ray", *HEAVY),
    "lipsync_client": (*SERVICE, *HEAVY, "numpy", "typer", "serve_app"),
    "cluster": ("torch",),
    # The scaling loop and the command line load these.
    "cluster.rental.clients": ("ray", "fastapi", "starlette", "uvicorn", *HEAVY),
    "cluster.fleet.provider": ("ray", "fastapi", "starlette", "uvicorn", *HEAVY),
}
# One wrong import for each contract: the file that gets it, and what it imports.
PLANTED = {
    "packages": ("musetalk_pipeline/media/probe.py", "serve_app.private_folders"),
    "serve_app_rooms": ("serve_app/config/settings.py", "serve_app.graph.driver"),
    "musetalk_pipeline_rooms": ("musetalk_pipeline/pixels/blend.py", "musetalk_pipeline.faces"),
    "engines": (
        "musetalk_pipeline/engines/warp/engine.py",
        "musetalk_pipeline.engines.musetalk.engine",
    ),
    "no_circles": ("orchestrator/errors.py", "orchestrator.client"),
    "library_without_service": ("musetalk_pipeline/options.py", "pydantic"),
    "vocabulary_without_media": ("musetalk_pipeline/plan.py", "av"),
    "orchestrator_alone": ("orchestrator/client.py", "ray"),
    "client_alone": ("lipsync_client/calls.py", "pydantic"),
    "scheduling_without_ray": ("serve_app/scaling/demand.py", "ray"),
    "orchestrator_rooms": ("orchestrator/store/keys.py", "orchestrator.app"),
    "store_without_http": ("orchestrator/store/keys.py", "fastapi"),
    "cluster_rooms": ("cluster/rental/identity.py", "cluster.fleet.cells"),
    "cluster_without_torch": ("cluster/rental/http.py", "torch"),
    "renting_without_ray": ("cluster/fleet/cells.py", "ray"),
    "jobs_without_http": ("serve_app/contract/outcomes.py", "fastapi"),
}


def loaded_by(module: str) -> set[str]:
    """Return the top-level modules that importing `module` loads, in a fresh interpreter."""
    code = f"import {module}, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("module", RULES)
def test_nothing_forbidden_is_loaded(module):
    if importlib.util.find_spec(module.partition(".")[0]) is None or not list(
        (ROOT / module.partition(".")[0]).glob("*.py")
    ):
        pytest.skip(f"{module} is not part of this tree")
    assert not loaded_by(module) & set(RULES[module])


def linted(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Check the import contracts of `tree`."""
    command = [LINT_IMPORTS, "--no-cache", "--no-logo", *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the packages and their contracts."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", tree)
    for package in PACKAGES:
        only_code = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tree / package, ignore=only_code)
    return tree


def test_the_import_contracts_are_kept():
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("contract", PLANTED)
def test_a_planted_import_breaks_its_contract(copied, contract):
    name, imported = PLANTED[contract]
    file = copied / name
    sound = file.read_text()
    file.write_text(f"{sound}\n\ndef planted() -> None:\n    import {imported}\n")
    try:
        done = linted(copied, "--contract", contract)
    finally:
        file.write_text(sound)
    assert done.returncode == 1
    assert "0 kept, 1 broken" in done.stdout


def test_a_new_room_has_to_be_placed(copied):
    room = copied / "serve_app" / "attic"
    room.mkdir()
    (room / "__init__.py").write_text('"""Nobody said where this belongs."""\n')
    try:
        done = linted(copied, "--contract", "serve_app_rooms")
    finally:
        shutil.rmtree(room)
    assert "serve_app.attic" in done.stdout
    assert done.returncode == 1


def test_every_contract_and_every_package_is_covered():
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    assert {contract["id"] for contract in contracts} == PLANTED.keys()
    shipped = {
        pattern.removesuffix("*")
        for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert {name for name in shipped if (ROOT / name / "__init__.py").exists()} == set(PACKAGES)


def test_the_picture_of_the_rooms_is_that_of_the_code():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "rooms_picture.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
