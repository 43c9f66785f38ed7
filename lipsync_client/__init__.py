"""A client of lip-sync servers, for Python.

It needs httpx and the standard library alone (`verify_webhook` needs standardwebhooks as well), so
this folder can be copied into another program. docs/api.md shows its use.
"""

from lipsync_client.async_client import AsyncLipsyncClient
from lipsync_client.client import LipsyncClient
from lipsync_client.downloading import NotFinished
from lipsync_client.errors import (
    ApiError,
    BadAnswer,
    JobFailed,
    LipsyncError,
    NotSupported,
    Unreachable,
    WaitTimedOut,
    WebhookRefused,
)
from lipsync_client.exchange import Retries
from lipsync_client.inputs import NewJob
from lipsync_client.values import (
    Avatar,
    Batch,
    Estimate,
    Failure,
    Job,
    Preview,
    Progress,
    Transfer,
    Upload,
    WebhookEvent,
)
from lipsync_client.webhooks import verify_webhook

__all__ = [
    "ApiError",
    "AsyncLipsyncClient",
    "Avatar",
    "BadAnswer",
    "Batch",
    "Estimate",
    "Failure",
    "Job",
    "JobFailed",
    "LipsyncClient",
    "LipsyncError",
    "NewJob",
    "NotFinished",
    "NotSupported",
    "Preview",
    "Progress",
    "Retries",
    "Transfer",
    "Unreachable",
    "Upload",
    "WaitTimedOut",
    "WebhookEvent",
    "WebhookRefused",
    "verify_webhook",
]
