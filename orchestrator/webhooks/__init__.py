"""Signed notifications by the Standard Webhooks scheme: how they are sent, and how often."""
