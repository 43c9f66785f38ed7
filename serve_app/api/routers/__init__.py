"""The routes, in routers that other FastAPI applications can include too (application.py)."""

from serve_app.api.form_bodies import describe_forms
from serve_app.api.routers import (
    admin,
    avatars,
    batches,
    estimates,
    files,
    health,
    jobs,
    streams,
    synchronous,
    uploads,
)

ROUTERS = (
    health.router,
    streams.router,  # before the jobs, whose ids may have slashes
    jobs.router,
    batches.router,
    avatars.router,
    synchronous.router,
    estimates.router,
    files.router,
    uploads.router,
    admin.router,
)

for _router in ROUTERS:
    describe_forms(_router)

__all__ = ["ROUTERS"]
