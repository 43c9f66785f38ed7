"""Logs and metrics, and what of an address may appear in them."""
