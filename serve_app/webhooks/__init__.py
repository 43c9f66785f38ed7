"""Signed notifications of what became of a job."""
