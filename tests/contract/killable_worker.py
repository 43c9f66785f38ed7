"""A worker process that claims a job and never ends it: `… ORCHESTRATOR_URL STATE_FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from serve_app.contract.outcomes import Outcome
from serve_app.contract.requests import JobRequest
from tests.contract.fake_orchestrator import FakeOrchestrator
from tests.contract.worker_rig import DONE, Desk, ProgressCallback, worker_rig


class _Elsewhere(FakeOrchestrator):
    """The address of an orchestrator that runs in another process."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._elsewhere = url

    @property
    def url(self) -> str:
        return self._elsewhere


async def _work_for_ever(url: str, folder: Path) -> None:
    async def job(request: JobRequest, on_progress: ProgressCallback) -> Outcome:
        await asyncio.Event().wait()
        return DONE

    async with worker_rig(_Elsewhere(url), folder, desk=Desk(job), is_beating=True) as rig:
        await rig.worker.claim_and_run()


if __name__ == "__main__":
    asyncio.run(_work_for_ever(sys.argv[1], Path(sys.argv[2])))
