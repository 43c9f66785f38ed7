"""The FastAPI application over one job store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from orchestrator.job_api.document import describe
from orchestrator.pages.routes import add_pages
from orchestrator.service import (
    batch_routes,
    errors,
    job_routes,
    operator_routes,
    scaling_routes,
    worker_routes,
)
from orchestrator.service.body_limit import BodyLimit
from orchestrator.service.metrics import MeasureRequests
from orchestrator.service.scaling_thread import scaling_thread
from orchestrator.service.services import Services
from orchestrator.service.settings import API_VERSION


def create_app(services: Services) -> FastAPI:
    """Return the application. It closes the store when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(services.sweep_forever(), name="sweeping")
        delivering = asyncio.create_task(services.deliver_forever(), name="webhooks")
        plan = services.fleet_plan
        scaling = scaling_thread(services.store, plan) if plan and plan.fleets else None
        if scaling is not None:
            scaling.start()
        try:
            yield
        finally:
            services.stop()
            delivering.cancel()
            if scaling is not None:
                await asyncio.to_thread(scaling.stop)
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
        batch_routes.router,
        worker_routes.router,
        operator_routes.router,
        scaling_routes.router,
    ):
        app.include_router(router)
    describe(app)
    add_pages(app, services)
    errors.add_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(MeasureRequests, metrics=services.metrics)
    return app
