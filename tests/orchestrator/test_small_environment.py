"""The orchestrator, and what rents machines for it, run with their own lock alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "orchestrator.lock"
SERVES = """
import re, sys
from importlib.metadata import packages_distributions

of_module = packages_distributions()

class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        found = {{re.sub("[-_.]+", "-", one).lower() for one in of_module.get(top, ())}}
        if found and not found & {locked}:
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

import cluster.fleet.provider
"""


def test_the_orchestrator_and_its_fleet_need_nothing_but_their_lock(tmp_path: Path) -> None:
    locked = set(re.findall(r"^([a-z0-9.-]+)==", LOCK.read_text(), re.M))
    assert not locked & {"torch", "ray", "numpy", "av", "opencv-python-headless"}
    code = SERVES.format(locked=locked, url=f"sqlite:///{tmp_path}/jobs.db")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
