"""Every `code` of an error answer and what to do about it, in one table.

A code is stable and meant for programs; docs/errors.md lists them all. An answer carries the hint
of its code unless the error itself has a better one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

ErrorCode = Literal[
    "invalid_request",
    "body_not_allowed",
    "body_too_slow",
    "body_too_large",
    "job_conflict",
    "job_ended",
    "job_not_ended",
    "too_many_joined",
    "not_found",
    "job_not_found",
    "file_not_found",
    "avatar_not_found",
    "avatar_without_video",
    "avatars_off",
    "stream_not_ready",
    "stream_gone",
    "streams_off",
    "upload_not_found",
    "upload_unfinished",
    "upload_offset",
    "upload_busy",
    "uploads_full",
    "uploads_off",
    "too_many_uploads",
    "method_not_allowed",
    "key_missing",
    "key_wrong",
    "token_missing",
    "token_wrong",
    "local_callers_only",
    "link_wrong",
    "link_expired",
    "too_many_guesses",
    "stopping",
    "queue_full",
    "busy",
    "too_many_readers",
    "unavailable",
    "starting",
    "state_unavailable",
    "internal_error",
    "media_error",
    "download_failed",
    "source_refused",
    "media_too_large",
    "invalid_video",
    "invalid_audio",
    "invalid_file",
    "audio_too_short",
    "invalid_options",
    "no_face",
    "processing_error",
    "model_load_failed",
    "out_of_gpu_memory",
    "stage_failed",
    "deadline_exceeded",
    "upload_failed",
    "cancelled",
    "abandoned",
    "unknown",
]

HINTS: Mapping[str, str] = MappingProxyType(
    {
        # The request.
        "invalid_request": "Correct the field that the message names; /docs lists all fields.",
        "body_not_allowed": "Send it without Content-Length and Transfer-Encoding.",
        "body_too_slow": "Send the headers and the body of the request together.",
        "body_too_large": "Send less data: videos and sounds are sent as URLs.",
        "job_conflict": "Send another musetalk_job_id or Idempotency-Key, or the same content.",
        "job_ended": "Nothing is left to cancel; request the job to see its result.",
        "job_not_ended": "Cancel the job first, or wait for its end.",
        "too_many_joined": "Submit another job with an id of its own.",
        "not_found": "Compare the path with the routes that /docs lists.",
        "job_not_found": "Check the id; old jobs are deleted, so the job may be sent again.",
        "file_not_found": "Results are deleted after a while; send the job again to make it again.",
        "avatar_not_found": "List the avatars with GET /v1/avatars, or send video_url.",
        "avatar_without_video": "Prepare it with POST /v1/avatars, or send video_url.",
        "stream_not_ready": "Request it again in a second, or wait for the job's stream_url.",
        "stream_gone": "Request the job: output_url leads to the finished video, if there is one.",
        "streams_off": "Set streams.max_gb above 0 where the worker runs.",
        "avatars_off": "Set avatars.max_gb above 0 where the worker runs, or send video_url.",
        "upload_not_found": "Upload the file again; GET /v1/uploads lists those of your key.",
        "upload_unfinished": "Send the rest of the file; HEAD on the upload says where it begins.",
        "upload_offset": "Send the piece that begins there; HEAD on the upload says it too.",
        "upload_busy": "Wait until that request has ended, then continue where HEAD says.",
        "uploads_full": "Delete uploads with DELETE /v1/uploads/{id}, or wait until some expire.",
        "uploads_off": "Send the address of the file, or set uploads.max_gb above 0 on the worker.",
        "method_not_allowed": "Use one of the methods that the Allow header names.",
        # The caller.
        "key_missing": "Send the worker's key in X-Internal-API-Key or Authorization: Bearer.",
        "key_wrong": "Compare the key with the one that is set where the worker runs.",
        "token_missing": "Send WORKER_TOKEN in Authorization: Bearer.",
        "token_wrong": "Compare the token with WORKER_TOKEN where the worker runs.",
        "local_callers_only": "Set INGRESS_API_KEY where the worker runs, and send it.",
        "link_wrong": "Use the whole link, including everything after the question mark.",
        "link_expired": "Request the job again: the answer has a new link.",
        "too_many_guesses": "Wait as long as Retry-After says, then send the correct key or link.",
        # The worker's state.
        "stopping": "Send it to another worker, or to this one after it has restarted.",
        "queue_full": "Send it again after Retry-After seconds, or send it to another worker.",
        "busy": "Send it again after Retry-After seconds, or send it to another worker.",
        "too_many_readers": "Send it again after Retry-After seconds.",
        "too_many_uploads": "Send it again after Retry-After seconds.",
        "unavailable": "Send it again after Retry-After seconds; an accepted job continues.",
        "starting": "Wait until /hc returns 200, then send it again.",
        "state_unavailable": "Send it again later; the operator should check the state folder.",
        "internal_error": "Send it again; if it fails again, report it with the worker's log.",
        # The media.
        "media_error": "Check that both files play, then send them again.",
        "download_failed": "Check that the URL works from elsewhere and has not expired.",
        "source_refused": "Use a public http(s) URL; ALLOWED_SOURCE_HOSTS allows private hosts.",
        "media_too_large": "Send a smaller or shorter file, or raise the limit in `inputs`.",
        "invalid_video": "Check that the file plays; MP4 with H.264 always works.",
        "invalid_audio": "Check that the file has sound and plays; WAV or AAC always works.",
        "invalid_file": "Check that the file plays; MP4, WAV and MP3 always work.",
        "audio_too_short": "Send speech that is at least one video frame long.",
        "invalid_options": "Correct the option that the message names (see docs/configuration.md).",
        "no_face": "Use a video in which a larger face looks towards the camera.",
        # A job's end.
        "processing_error": "Send the job again, or to another worker.",
        "model_load_failed": "Fetch the weights again on the worker: `lipsync weights fetch`.",
        "out_of_gpu_memory": "Use a worker with more GPU memory, or request a smaller resolution.",
        "stage_failed": "Send the job again; if it fails again, report it with the worker's log.",
        "deadline_exceeded": "Send the job again when the worker is less busy, or to another one.",
        "upload_failed": "Send the job again; check the storage settings if it keeps failing.",
        "cancelled": "Send the job again if you need its result after all.",
        "abandoned": "Send the job again.",
        "unknown": "Send the job again; if it fails again, report it with the worker's log.",
    }
)


def hint_of(code: str) -> str:
    """Return what to do about an error with that code."""
    return HINTS.get(code, HINTS["unknown"])
