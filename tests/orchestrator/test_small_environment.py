"""What a machine needs that runs only the orchestrator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "numpy", "av", "cv2", "scipy", "yaml", "aiohttp", "httpx", "b2sdk")
# The distributions of `python -m orchestrator`. `psycopg` is loaded for a PostgreSQL address only.
NEEDED = {
    "alembic",
    "fastapi",
    "psycopg",
    "pydantic",
    "pydantic-settings",
    "python-json-logger",
    "sqlalchemy",
    "starlette",
    "uvicorn",
}
SERVES = """
import json, sys
from importlib.metadata import packages_distributions

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise ModuleNotFoundError(f"{{name}} is not in the small environment", name=name)

sys.meta_path.insert(0, Absent())
import orchestrator.__main__
from orchestrator.server import new_server
from orchestrator.service.services import Services
from orchestrator.service.settings import read_settings
from orchestrator.store.store import JobStore
import orchestrator.scaling.dry_run, orchestrator.scaling.process
from orchestrator.store.database import open_engine

settings = read_settings({{"DATABASE_URL": {url!r}}})
services = Services(settings, JobStore.open({url!r}, settings.rules()))
new_server(settings, services).config.load()
open_engine("postgresql://nobody@nowhere/none").dispose()
names = packages_distributions()
loaded = {{name.partition(".")[0] for name, module in sys.modules.items() if module}}
print(json.dumps(sorted({{one.lower() for name in loaded for one in names.get(name, ())}})))
"""


def test_the_orchestrator_runs_without_the_packages_of_a_worker(tmp_path: Path) -> None:
    code = SERVES.format(heavy=HEAVY, url=f"sqlite:///{tmp_path}/jobs.db")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert loaded >= NEEDED
    assert not loaded & set(HEAVY)
    print(sorted(loaded))
