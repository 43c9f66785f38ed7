"""The FastAPI application of an ingress, and its routes for other FastAPI applications.

    app = FastAPI()
    add_routes(app, services, [jobs.router], prefix="/lipsync")

The routes check access themselves. The gate in front of them adds limits on bodies, and hides which
routes exist from callers without access.
"""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from orchestrator.job_api.document import describe
from serve_app.api import documentation
from serve_app.api.departed_clients import DepartedClients
from serve_app.api.description import DESCRIPTION, SUMMARY, TAGS, operation_id
from serve_app.api.errors import (
    ERROR_HANDLERS,
    on_crash,
    on_http_error,
    on_invalid,
)
from serve_app.api.routers import ROUTERS
from serve_app.api.services import Services
from serve_app.config.settings import API_VERSION
from serve_app.gate.cross_origin import CrossOrigin
from serve_app.gate.middleware import INGRESS_LIMITS, Gate
from serve_app.studio.routes import studio_router


def build_api(services: Services) -> FastAPI:
    """Return the whole application: all routes, one shape of errors, and the gate in front."""
    api = FastAPI(
        title="Lip-sync",
        version=API_VERSION,
        summary=SUMMARY,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        generate_unique_id_function=operation_id,
        docs_url=None,  # ours work offline
        redoc_url=None,
        exception_handlers={
            RequestValidationError: on_invalid,
            HTTPException: on_http_error,
            Exception: on_crash,
        },
    )
    # The gate in the proxy cannot check links, and a proxy may not run it, so this one checks all.
    api.add_middleware(
        Gate,
        access=services.access,
        limits=INGRESS_LIMITS,
        cross_origin=CrossOrigin(services.options.cors_origins),
    )
    api.add_middleware(DepartedClients)  # the one added last comes first
    add_routes(api, services)
    api.include_router(documentation.router)
    describe(api)
    if services.options.has_page:
        api.include_router(studio_router())
    return api


def add_routes(
    app: FastAPI, services: Services, routers: Sequence[APIRouter] = ROUTERS, *, prefix: str = ""
) -> None:
    """Include routes, and the handlers of the errors that they raise, in any FastAPI application.

    Errors that FastAPI itself raises, such as those of invalid bodies, keep that application's
    shape. One application can have the routes of one ingress.
    """
    services.attach(app)
    for error, handler in ERROR_HANDLERS.items():
        app.add_exception_handler(error, handler)
    for router in routers:
        app.include_router(router, prefix=prefix)
