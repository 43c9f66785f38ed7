"""Webhooks as a receiver verifies them."""

from __future__ import annotations

from collections.abc import Mapping

from lipsync_client.errors import WebhookRefused
from lipsync_client.values import Job, WebhookEvent


def verify_webhook(secret: str, body: bytes | str, headers: Mapping[str, str]) -> WebhookEvent:
    """Return the event of a webhook whose signature is right. Needs the package `standardwebhooks`.

    Args:
        secret: WEBHOOK_SECRET of the server, with or without `whsec_`.
        body: exactly as it was received.
        headers: those of the request, in any case.

    Raises:
        WebhookRefused: it was not signed with this secret, or it is older than five minutes.
    """
    from standardwebhooks import Webhook, WebhookVerificationError

    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    try:
        event = Webhook(secret).verify(text, dict(headers))
    except (WebhookVerificationError, ValueError) as exc:
        raise WebhookRefused(f"The webhook cannot be trusted: {exc}.") from exc
    return WebhookEvent(str(event.get("type")), Job.read(event.get("data")), event)
