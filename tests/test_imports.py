"""Who may import whom (docs/architecture.md), each asked in an interpreter of its own."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WEB = {"fastapi", "starlette", "uvicorn"}

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
    "orchestrator": ("torch", "ray"),
    "orchestrator.client": ("torch", "ray", "sqlalchemy", "psycopg"),
    "cluster": ("torch",),
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


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("musetalk_pipeline", ("serve_app", "orchestrator", "cluster")),
        ("orchestrator", ("serve_app", "musetalk_pipeline", "cluster")),
        ("serve_app", ("cluster",)),
    ],
)
def test_packages_import_along_the_arrows_only(package, forbidden):
    for path in sorted((ROOT / package).rglob("*.py")):
        text = path.read_text()
        for other in forbidden:
            assert f"import {other}" not in text and f"from {other}" not in text, path


def imported_by(path: Path) -> set[str]:
    """Return the modules that a file names in its imports, those in functions included."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return named


def reached_from(module: str) -> dict[str, set[str]]:
    """Return what each module of ours imports that `module` reaches. The source is read, because
    Ray itself loads a web framework.
    """
    found: dict[str, set[str]] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if name not in found and path.is_file():
            found[name] = imported_by(path)
            waiting += found[name]
    return found


def test_the_job_service_knows_nothing_of_http():
    """Mend 3.11: service.py said so, and imported FastAPI through answers.py."""
    reached = reached_from("serve_app.jobs.service")
    assert "serve_app.contract.outcomes" in reached
    for name, imports in reached.items():
        assert not {module.partition(".")[0] for module in imports} & WEB, name
