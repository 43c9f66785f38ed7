"""The routes, in routers that other FastAPI applications can include too (application.py)."""

from serve_app.api.routers import admin, avatars, files, health, jobs, synchronous, uploads

ROUTERS = (
    health.router,
    jobs.router,
    avatars.router,
    synchronous.router,
    files.router,
    uploads.router,
    admin.router,
)

__all__ = ["ROUTERS"]
