"""The calls of the API: what is sent, and how the answer is read."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from lipsync_client.effects import Emit, Flow, Request
from lipsync_client.errors import ApiError, BadAnswer
from lipsync_client.exchange import Retries, exchange, supported
from lipsync_client.inputs import Inputs, NewJob, Source
from lipsync_client.paths import (
    AVATARS,
    BATCHES,
    ESTIMATE,
    JOBS,
    PREVIEW,
    avatar_path,
    batch_path,
    job_path,
)
from lipsync_client.values import Avatar, Batch, Estimate, Job, Preview, known

WORK_S = 900.0  # until the answer to a call that fetches media; the server has deadlines of its own
LARGEST_PAGE = 200
UPDATE = "Update the server."
NOT_OF_A_TRIAL = ("musetalk_job_id", "webhook_url", "metadata")  # of an estimate or a preview


def submit(job: NewJob, retries: Retries, idempotency_key: str | None = None) -> Flow[Job]:
    """Submit a job. Without a key one is made, so that a repeated request makes no second job."""
    body = yield from Inputs(retries).body(job)
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    answer = yield from exchange(Request("POST", JOBS, headers, json=body), retries)
    return Job.read(answer.json())


def get_job(job_id: str, retries: Retries) -> Flow[Job]:
    """Return a job."""
    answer = yield from exchange(Request("GET", job_path(job_id)), retries)
    return Job.read(answer.json())


def cancel(job_id: str, retries: Retries) -> Flow[None]:
    """Request the end of a job."""
    yield from exchange(Request("DELETE", job_path(job_id)), retries)


def retry(job_id: str, retries: Retries) -> Flow[Job]:
    """Queue a job again that has failed or was cancelled."""
    request = Request("POST", f"{job_path(job_id)}/retry", is_repeatable=False)
    return Job.read((yield from exchange(request, retries)).json())


def list_jobs(status: str | None, limit: int | None, retries: Retries) -> Flow[None]:
    """Emit jobs, newest first: `limit` of them, or all."""
    left = limit
    params = {} if status is None else {"status": status}
    while left is None or left > 0:
        params["limit"] = str(LARGEST_PAGE if left is None else min(left, LARGEST_PAGE))
        answer = yield from exchange(Request("GET", JOBS, params=dict(params)), retries)
        page = _object(answer.json())
        for body in page.get("jobs") or ():
            yield Emit(Job.read(body))
        if left is not None:
            left -= len(page.get("jobs") or ())
        if page.get("next_cursor") is None:
            return
        params["cursor"] = str(page["next_cursor"])


def estimate(job: NewJob, retries: Retries) -> Flow[Estimate]:
    """Return what a job would take."""
    body = _without(NOT_OF_A_TRIAL, (yield from Inputs(retries).body(job)))
    request = Request("POST", ESTIMATE, json=body, timeout_s=WORK_S)
    answer = yield from supported(exchange(request, retries), "estimates", UPDATE)
    return known(Estimate, answer.json())


def preview(job: NewJob, retries: Retries) -> Flow[Preview]:
    """Return one finished frame of a job."""
    body = _without(NOT_OF_A_TRIAL, (yield from Inputs(retries).body(job)))
    request = Request("POST", PREVIEW, json=body, timeout_s=WORK_S)
    answer = yield from exchange(request, retries)
    try:
        box = _sides(answer.headers["x-face-box"])
        frame = int(answer.headers["x-source-frame"])
        faces = answer.headers.get("x-faces", "").split(";")
        return Preview(answer.body, box, frame, tuple(_sides(face) for face in faces if face))
    except (KeyError, ValueError):
        raise BadAnswer("The answer to a preview has no face box.") from None


def _sides(text: str) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (int(side) for side in text.split(","))
    return x0, y0, x1, y1


def submit_batch(
    jobs: Sequence[NewJob],
    retries: Retries,
    *,
    webhook_url: str | None = None,
    metadata: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Flow[Batch]:
    """Submit jobs together. A file that several of them name is uploaded once."""
    inputs, bodies = Inputs(retries), []
    for job in jobs:
        bodies.append((yield from inputs.body(job)))
    body: dict[str, Any] = {"jobs": bodies}
    if webhook_url is not None:
        body["webhook_url"] = webhook_url
    if metadata is not None:
        body["metadata"] = metadata
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    request = Request("POST", BATCHES, headers, json=body)
    hint = f"Submit the jobs one by one. {UPDATE}"
    answer = yield from supported(exchange(request, retries), "batches", hint)
    return Batch.read(answer.json())


def get_batch(batch_id: str, retries: Retries) -> Flow[Batch]:
    """Return a batch."""
    return Batch.read((yield from exchange(Request("GET", batch_path(batch_id)), retries)).json())


def cancel_batch(batch_id: str, retries: Retries) -> Flow[None]:
    """Request the end of every job of a batch that has not ended."""
    yield from exchange(Request("DELETE", batch_path(batch_id)), retries)


def prepare_avatar(
    video: Source, duration_s: float | None, fields: NewJob, retries: Retries
) -> Flow[Job]:
    """Prepare the avatar of a video. The result is a job without sound."""
    body = _without(("webhook_url", "metadata", "avatar_id"), fields.fields())
    body["video_url"] = yield from Inputs(retries).address(video)
    if duration_s is not None:
        body["duration_s"] = duration_s
    # Without an id of its own, a repeated request would prepare it twice.
    body.setdefault("musetalk_job_id", uuid.uuid4().hex)
    return Job.read((yield from exchange(Request("POST", AVATARS, json=body), retries)).json())


def list_avatars(retries: Retries) -> Flow[tuple[Avatar, ...]]:
    """Return the avatars that are kept."""
    body = _object((yield from exchange(Request("GET", AVATARS), retries)).json())
    return tuple(known(Avatar, avatar) for avatar in body.get("avatars") or ())


def get_avatar(avatar_id: str, retries: Retries) -> Flow[Avatar]:
    """Return an avatar."""
    return known(
        Avatar, (yield from exchange(Request("GET", avatar_path(avatar_id)), retries)).json()
    )


def delete_avatar(avatar_id: str, retries: Retries) -> Flow[None]:
    """Delete an avatar. One that is gone already is no error."""
    try:
        yield from exchange(Request("DELETE", avatar_path(avatar_id)), retries)
    except ApiError as error:
        if error.code != "avatar_not_found":
            raise


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise BadAnswer("The answer is not a JSON object.")
    return body


def _without(names: Sequence[str], body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}
