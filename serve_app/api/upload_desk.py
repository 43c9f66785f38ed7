"""Uploads as the caller of one request sees them: those of its own key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.types import Scope

from musetalk_pipeline.errors import MediaError
from serve_app.api.errors import RequestRejected
from serve_app.api.services import Services, ServicesDep
from serve_app.contract.outcomes import rejected
from serve_app.contract.requests import UPLOAD, is_upload
from serve_app.telemetry.metrics import UPLOADS_REFUSED
from serve_app.uploads.errors import UploadError, UploadNotFound
from serve_app.uploads.records import Upload
from serve_app.uploads.store import UploadStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UploadDesk:
    """What one caller may do with uploads. `do` raises what the store's methods do."""

    store: UploadStore
    owner: str

    async def do(self, method: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a method of the store for this owner, in a thread, because a disk may stall.

        What is refused is counted, but not that an upload is absent: the gate removes what it could
        not store, whether the ingress has removed it or not.
        """
        try:
            return await asyncio.to_thread(method, self.owner, *args, **options)
        except UploadNotFound:
            raise
        except (UploadError, MediaError) as exc:
            UPLOADS_REFUSED.inc(tags={"code": exc.code})
            raise


def desk_of(services: Services, scope: Scope) -> UploadDesk:
    """Return the desk for the caller of an admitted request.

    Raises:
        RequestRejected: this worker accepts no uploads.
    """
    if services.uploads is None:
        text = "This worker accepts no uploads."
        raise RequestRejected(rejected(409, "uploads_off", text))
    owner = services.owners.of_key(services.access.key_of(scope))
    return UploadDesk(services.uploads, owner)


async def _desk(request: Request, services: ServicesDep) -> UploadDesk:
    return desk_of(services, request.scope)


DeskDep = Annotated[UploadDesk, Depends(_desk)]


async def check_uploads(services: Services, scope: Scope, *urls: str | None) -> None:
    """Check that those of a request's addresses that name uploads can be used by its caller.

    They are kept for their whole time from now on.

    Raises:
        UploadNotFound, UploadUnfinished: one of them cannot be used.
        RequestRejected: this worker accepts no uploads.
    """
    for url in urls:
        if url is not None and is_upload(url):
            desk = desk_of(services, scope)
            await desk.do(desk.store.use, url.removeprefix(UPLOAD))


def upload_body(upload: Upload) -> dict[str, Any]:
    """Return an upload as answers show it. What is not known yet is null."""
    record, media = upload.record, upload.record.media
    return {
        "id": record.id,
        "url": f"{UPLOAD}{record.id}",
        "name": record.name,
        "status": "unfinished" if media is None else "ready",
        "bytes": upload.offset,
        "length": record.length,
        "kind": media and media.kind,
        "duration_s": media and media.duration_s,
        "width": media and media.width,
        "height": media and media.height,
        "fps": media and media.fps,
        "created_at": _utc(record.created),
        "expires_at": _utc(upload.expires),
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
