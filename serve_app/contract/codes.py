"""Every `code` of an error answer and what to do about it, in one table.

A code is stable and meant for programs; docs/errors.md lists them all. The hint here is what an
answer says unless the error itself knows better.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

HINTS: Mapping[str, str] = MappingProxyType(
    {
        # The request.
        "invalid_request": "Correct the field that the message names; /docs lists all of them.",
        "body_not_allowed": "Send it without Content-Length and Transfer-Encoding.",
        "body_too_slow": "Send the head and the body of the request at once.",
        "body_too_large": "Send less; videos and sounds are sent as addresses, not as data.",
        "job_conflict": "Send another musetalk_job_id or Idempotency-Key, or the same content.",
        "job_ended": "Nothing is left to cancel; look at the job for its result.",
        "too_many_joined": "Enter another job, with an id of its own.",
        "not_found": "Compare the path with those that /docs lists.",
        "job_not_found": "Compare the id; old jobs are forgotten, so the job may be sent again.",
        "file_not_found": "Results are removed after a while; send the job again to have it anew.",
        "method_not_allowed": "Use one of the methods that the Allow header names.",
        # The caller.
        "key_missing": "Send the worker's key in X-Internal-API-Key or Authorization: Bearer.",
        "key_wrong": "Compare the key with the one that is set where the worker runs.",
        "token_missing": "Send WORKER_TOKEN in Authorization: Bearer.",
        "token_wrong": "Compare the token with WORKER_TOKEN where the worker runs.",
        "local_callers_only": "Set INGRESS_API_KEY where the worker runs, and send it.",
        "link_wrong": "Use the whole link, with everything behind its question mark.",
        "link_expired": "Ask for the job again: the answer has a new link.",
        "too_many_guesses": "Wait as long as Retry-After says, and send the right key or link.",
        # The worker's state.
        "stopping": "Send it to another worker, or to this one when it has started again.",
        "queue_full": "Send it again when Retry-After seconds have passed, or to another worker.",
        "busy": "Send it again when Retry-After seconds have passed, or to another worker.",
        "too_many_readers": "Send it again when Retry-After seconds have passed.",
        "unavailable": "Send it again when Retry-After seconds have passed; its job goes on.",
        "starting": "Wait until /hc answers 200, then send it again.",
        "state_unavailable": "Send it again later; the operator looks at the state folder's space.",
        "internal_error": "Send it again; if it fails again, report it with the worker's log.",
        # The media.
        "media_error": "Check that both files play, then send them again.",
        "download_failed": "Check that the address works from elsewhere and has not expired.",
        "source_refused": "Use a public http(s) address; ALLOWED_SOURCE_HOSTS names private ones.",
        "media_too_large": "Send a smaller or shorter file, or raise the limit in `inputs`.",
        "invalid_video": "Check that the file plays; MP4 with H.264 always works.",
        "invalid_audio": "Check that the file has sound and plays; WAV or AAC always works.",
        "audio_too_short": "Send at least one video frame's length of speech.",
        "invalid_options": "Correct the option that the message names; the README lists them.",
        "no_face": "Use a video in which a face looks towards the camera and is larger.",
        # A job's end.
        "processing_error": "Send the job again, or to another worker.",
        "model_load_failed": "Fetch the weights anew where the worker runs: make weights.",
        "out_of_gpu_memory": "Use a worker with more GPU memory, or ask for fewer pixels.",
        "stage_failed": "Send the job again; if it fails again, report it with the worker's log.",
        "deadline_exceeded": "Send the job again when the worker is less busy, or to another one.",
        "upload_failed": "Send the job again; check the storage settings if it goes on.",
        "cancelled": "Send the job again if its result is wanted after all.",
        "abandoned": "Send the job again.",
        "unknown": "Send the job again; if it fails again, report it with the worker's log.",
    }
)


def hint_of(code: str) -> str:
    """Return what to do about an error with that code."""
    return HINTS.get(code, HINTS["unknown"])
