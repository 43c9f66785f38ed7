"""Access to routes as FastAPI dependencies: /docs shows a padlock, and "Authorize" fills it in.

The schemes only describe what a request may carry. The decision is made by access_control.py over
all headers, as in the gate, so that a route is guarded the same way wherever it is mounted.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, APIKeyQuery, HTTPAuthorizationCredentials, HTTPBearer

from serve_app.api.errors import RequestRejected
from serve_app.api.services import ServicesDep
from serve_app.gate.rejections import Rejection
from serve_app.gate.signed_paths import file_subject, stream_subject

key_header = APIKeyHeader(
    name="X-Internal-API-Key",
    scheme_name="Key",
    description="INGRESS_API_KEY, or INTERNAL_API_KEY for callers from elsewhere if that is unset.",
    auto_error=False,
)
key_bearer = HTTPBearer(
    scheme_name="KeyAsBearer",
    description="The same key as `Authorization: Bearer`.",
    auto_error=False,
)
worker_token = HTTPBearer(
    scheme_name="WorkerToken",
    description="WORKER_TOKEN, for the ping and the preflight.",
    auto_error=False,
)
link_signature = APIKeyQuery(
    name="signature",
    scheme_name="SignedLink",
    description="Part of the links to results and streams, together with `expires`.",
    auto_error=False,
)

_Header = Annotated[str | None, Depends(key_header)]
_Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(key_bearer)]
_Token = Annotated[HTTPAuthorizationCredentials | None, Depends(worker_token)]
_Signature = Annotated[str | None, Depends(link_signature)]


async def require_key(
    request: Request, services: ServicesDep, _key: _Header, _bearer: _Bearer
) -> None:
    """Reject a caller who may not use the job API.

    Raises:
        RequestRejected: the key is missing or invalid.
    """
    _require(services.access.check_key(request.scope))


async def require_worker_token(
    request: Request, services: ServicesDep, _token: _Token, _key: _Header
) -> None:
    """Reject a caller without the worker's token or the callers' key.

    Raises:
        RequestRejected: neither is there, or it is invalid.
    """
    _require(services.access.check_token(request.scope))


async def require_ping_access(
    request: Request, services: ServicesDep, _token: _Token, _key: _Header
) -> None:
    """Reject a caller as `require_worker_token` does, unless the ping is public.

    Raises:
        RequestRejected: the token is missing or invalid.
    """
    _require(services.access.check_ping(request.scope))


async def require_link_or_key(
    request: Request,
    key: str,
    services: ServicesDep,
    _signature: _Signature,
    _key: _Header,
    _bearer: _Bearer,
) -> None:
    """Reject a caller who has neither a valid link to the file `key` nor the callers' key.

    Raises:
        RequestRejected: the link is invalid or has expired, or the key is missing or invalid.
    """
    _require(services.access.check_link(request.scope, file_subject(key)))


async def require_stream_link_or_key(
    request: Request,
    job_id: str,
    services: ServicesDep,
    _signature: _Signature,
    _key: _Header,
    _bearer: _Bearer,
) -> None:
    """Reject a caller who has neither a valid link to the stream of `job_id` nor the callers' key.

    Raises:
        RequestRejected: see `require_link_or_key`.
    """
    _require(services.access.check_link(request.scope, stream_subject(job_id)))


def _require(rejection: Rejection | None) -> None:
    if rejection is not None:
        raise RequestRejected(rejection.as_failure(), rejection.headers)
