"""The ingress deployment: a thin shell that runs the composed services inside Ray Serve."""

import asyncio
from typing import Any

from fastapi import FastAPI
from ray import serve

from serve_app.api.application import build_api
from serve_app.api.composition import compose
from serve_app.api.job_runner import JobRunner
from serve_app.config.environment import read_environment
from serve_app.config.settings import AppArgs
from serve_app.graph.departure import ReplicaDeparture
from serve_app.graph.pools import Graph, Pool
from serve_app.graph.replica_setup import set_up_replica
from serve_app.uploads.folder import UploadPiece


class Ingress:
    """One replica of the ingress."""

    def __init__(
        self,
        args: AppArgs,
        preprocessor: Any,
        generators: dict[str, Any],
        finisher: Any,
        app_name: str,
    ) -> None:
        env = read_environment()
        set_up_replica(env)
        pools = tuple(Pool(name, handle) for name, handle in generators.items())
        graph = Graph(preprocessor, pools, finisher)
        self._services = compose(args, env, graph, app_name)
        handle = serve.get_deployment_handle("Ingress", app_name)
        self._runner = JobRunner(
            self._services,
            lambda slot: handle.run_next.remote(slot),
            fetch_ahead=args.queue.downloads_ahead,
            departure=ReplicaDeparture(app_name),
            handover_s=args.queue.handover_s,
        )
        self._runner.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the routes; Serve calls this after the constructor."""
        return build_api(self._services)

    async def run_next(self, slot: int) -> None:
        """Run one job if one arrives within a few seconds; the slots call this themselves."""
        await self._runner.run_next(slot)

    async def read_upload(self, upload_id: str, offset: int, max_bytes: int) -> UploadPiece | None:
        """Return bytes of an upload to a stage on another node; None if it is gone."""
        uploads = self._services.uploads
        if uploads is None:
            return None
        return await asyncio.to_thread(uploads.folder.read, upload_id, offset, max_bytes)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the wanted replicas of each deployment; Serve asks once a second."""
        scaling = self._services.scaling
        return {} if scaling is None else scaling.record()

    def reconfigure(self, user_config: Any) -> None:
        """Apply the `user_config` of this deployment; see config/live_settings.py."""
        if (scaling := self._services.scaling) is not None:
            scaling.set_live(user_config)

    async def drain(self) -> None:
        """Begin no more jobs; return when the running ones have ended and were answered."""
        await self._runner.drain()

    async def leave(self) -> None:
        """End the running jobs at once, because this machine stops."""
        await self._runner.leave()
