"""Signed notifications of the end of a job."""
