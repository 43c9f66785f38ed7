"""`lipsync drain`, against the real routes of an ingress on a socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from command_rig import command, environment

from tests.joints.job_door import Rig
from tests.joints.test_leaving import at_work


def config(folder: Path, rig: Rig) -> Path:
    """Write a configuration that names the address of the rig."""
    address = urlsplit(str(rig.client.base_url))
    path = folder / "serve_config.yaml"
    options = {"host": address.hostname, "port": address.port}
    path.write_text(yaml.safe_dump({"http_options": options, "applications": []}))
    return path


async def drain(*arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command("drain", *arguments),
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_a_drain_is_followed_until_no_job_runs(tmp_path: Path) -> None:
    async with at_work(tmp_path) as rig:
        process = await drain(config(tmp_path, rig), "--json")
        assert process.stdout is not None and process.stderr is not None
        assert (await process.stderr.readline()).decode() == "running: a (20%); waiting: 1\n"
        rig.graph.go_on.set()
        left = json.loads(await process.stdout.read())
        assert await process.wait() == 0
    assert left == {"status": "drained", "running": [], "queued": 1}


async def test_a_drain_that_hands_back_waits_for_no_job(tmp_path: Path) -> None:
    async with at_work(tmp_path) as rig:
        process = await drain(config(tmp_path, rig), "--hand-back", "--json")
        out, _ = await process.communicate()
        assert process.returncode == 0
    assert json.loads(out)["queued"] == 2


async def test_a_worker_that_is_gone_or_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    async with at_work(tmp_path) as rig:
        file = config(tmp_path, rig)
    for path, status, code in ((file, 1, "unavailable"), (tmp_path / "none.yaml", 2, "usage")):
        process = await drain(path, "--json")
        out, _ = await process.communicate()
        assert (process.returncode, json.loads(out)["code"]) == (status, code)
