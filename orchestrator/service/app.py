"""The FastAPI application over one job store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from orchestrator.service import errors, job_routes, operator_routes, worker_routes
from orchestrator.service.body_limit import BodyLimit
from orchestrator.service.services import Services
from orchestrator.service.settings import API_VERSION


def create_app(services: Services) -> FastAPI:
    """Return the application. It closes the store when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(services.sweep_forever(), name="sweeping")
        delivering = asyncio.create_task(services.deliver_forever(), name="webhooks")
        try:
            yield
        finally:
            services.stop()
            delivering.cancel()
            await asyncio.wait({sweeping, delivering})
            await services.aclose()

    app = FastAPI(
        title="Lip-sync orchestrator",
        version=API_VERSION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    for router in (
        operator_routes.health_router,
        job_routes.router,
        worker_routes.router,
        operator_routes.router,
    ):
        app.include_router(router)
    errors.add_handlers(app)
    app.add_middleware(BodyLimit)
    return app
