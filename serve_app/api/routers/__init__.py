"""The routes, in routers that other FastAPI applications can include too (application.py)."""

from serve_app.api.routers import (
    admin,
    avatars,
    estimates,
    files,
    health,
    jobs,
    streams,
    synchronous,
)

ROUTERS = (
    health.router,
    streams.router,  # before the jobs, whose ids may have slashes
    jobs.router,
    avatars.router,
    synchronous.router,
    estimates.router,
    files.router,
    admin.router,
)

__all__ = ["ROUTERS"]
