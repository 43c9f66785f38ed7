"""Queues a webhook for every target of a job that has ended, whatever ended it."""

import asyncio
import hashlib
from dataclasses import replace

from orchestrator.store.batch_values import Batch
from serve_app.api.answers import batch_body, job_body
from serve_app.gate.links import Links
from serve_app.jobs.batches import BatchStore
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
    """Queue the notifications that are not queued yet, of jobs and of batches, until cancelled.

    Raises:
        StoreUnavailable: the registry cannot be used now. Call this again later.
    """
    batches = BatchStore(registry.file)
    while True:
        for notification in await threads.read(registry.pending_notifications, NOTIFY_AT_ONCE):
            await webhooks.enqueue(event_of(notification, links))
            await threads.write(registry.mark_notified, notification)
        for batch in await threads.read(batches.at_end, NOTIFY_AT_ONCE):
            await webhooks.enqueue(event_of_batch(batch, links))
            await threads.write(batches.mark_ended, batch.id)
        await asyncio.sleep(NOTIFY_POLL_S)


def event_of_batch(batch: Batch, links: Links | None = None) -> Event:
    """Return the event of a batch whose jobs have all ended. A batch has only one."""
    assert batch.webhook_url is not None
    kind = f"avatar.batch.{batch.status}"
    return Event(f"evt_{batch.id}", kind, batch.webhook_url, batch_body(batch, links))


def event_of(notification: PendingNotification, links: Links | None = None) -> Event:
    """Return the event for one target, with the metadata that was sent with that target.

    The same end of a job has the same id, so that queueing it twice is harmless.
    """
    job = notification.job
    end = f"{job.id}:{job.run}:{job.created}:{job.attempt}:{job.status}:{notification.webhook_url}"
    digest = hashlib.sha256(end.encode()).hexdigest()[:32]
    body = job_body(replace(job, metadata=notification.metadata), links)
    return Event(f"evt_{digest}", f"avatar.job.{job.status}", notification.webhook_url, body)
