"""The operator's calls at the orchestrator: which workers hold jobs, and draining."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError


class _Worker(BaseModel):
    id: str
    jobs: int
    status: str = ""


class _Workers(BaseModel):
    workers: list[_Worker]


_WORKERS = TypeAdapter(_Workers)


class OrchestratorDown(Exception):
    """The orchestrator did not do what it was asked for."""

    code = "orchestrator_unavailable"
    hint = "Is the address right, and the operator's key (ORCHESTRATOR_ADMIN_KEY)?"


class Orchestrator:
    """A caller with the operator's key. Threads may share it."""

    def __init__(self, base_url: str, admin_key: str, timeout_s: float = 20.0) -> None:
        headers = {"X-Internal-API-Key": admin_key} if admin_key else {}
        self._client = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s)

    def jobs(self) -> Mapping[str, int]:
        """Return how many jobs each worker holds, by its id.

        Raises:
            OrchestratorDown: it does not say.
        """
        answer = self._call("GET", "/v1/workers")
        try:
            return {one.id: one.jobs for one in _WORKERS.validate_json(answer.content).workers}
        except ValidationError as exc:
            raise OrchestratorDown("The orchestrator's list of workers is not one.") from exc

    def drain(self, worker_id: str) -> bool:
        """Let a worker claim nothing more. Return False if the orchestrator does not know it.

        Raises:
            OrchestratorDown: it may still claim.
        """
        return self._call("POST", f"/v1/workers/{worker_id}/drain").status_code != 404

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _call(self, method: str, path: str) -> httpx.Response:
        try:
            answer = self._client.request(method, path)
        except httpx.TransportError as exc:
            raise OrchestratorDown(
                f"The orchestrator did not answer ({type(exc).__name__})."
            ) from exc
        if answer.is_success or answer.status_code == 404:
            return answer
        raise OrchestratorDown(f"The orchestrator answered {answer.status_code} to {path}.")
