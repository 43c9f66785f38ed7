"""Queues a webhook for every target of a job that has ended, whatever ended it."""

import asyncio
import hashlib
from dataclasses import replace

from serve_app.api.answers import job_body
from serve_app.gate.links import Links
from serve_app.jobs.job import PendingNotification
from serve_app.jobs.registry import JobRegistry
from serve_app.jobs.state_file import StateThreads
from serve_app.webhooks.events import Event
from serve_app.webhooks.sender import WebhookSender

NOTIFY_POLL_S = 1.0
NOTIFY_AT_ONCE = 100


async def notify_forever(
    registry: JobRegistry,
    threads: StateThreads,
    webhooks: WebhookSender,
    links: Links | None = None,
) -> None:
    """Queue the notifications that are not queued yet, until cancelled.

    Raises:
        StoreUnavailable: the registry cannot be used now. Call this again later.
    """
    while True:
        for notification in await threads.read(registry.pending_notifications, NOTIFY_AT_ONCE):
            await webhooks.enqueue(event_of(notification, links))
            await threads.write(registry.mark_notified, notification)
        await asyncio.sleep(NOTIFY_POLL_S)


def event_of(notification: PendingNotification, links: Links | None = None) -> Event:
    """Return the event for one target, with the metadata that was sent with that target.

    The same end of a job has the same id, so that queueing it twice is harmless.
    """
    job = notification.job
    end = f"{job.id}:{job.run}:{job.created}:{job.attempt}:{job.status}:{notification.webhook_url}"
    digest = hashlib.sha256(end.encode()).hexdigest()[:32]
    body = job_body(replace(job, metadata=notification.metadata), links)
    return Event(f"evt_{digest}", f"avatar.job.{job.status}", notification.webhook_url, body)
