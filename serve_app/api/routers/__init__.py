"""The routes, in routers that other FastAPI applications can include too (application.py)."""

from serve_app.api.routers import admin, avatars, batches, files, health, jobs, synchronous

ROUTERS = (
    health.router,
    jobs.router,
    batches.router,
    avatars.router,
    synchronous.router,
    files.router,
    admin.router,
)

__all__ = ["ROUTERS"]
