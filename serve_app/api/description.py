"""What the document of the API says besides its routes: the groups of routes and their names."""

from __future__ import annotations

from fastapi.routing import APIRoute

SUMMARY = "Takes a video and speech; returns the video with lips that match the speech."
DESCRIPTION = """Every error of every route is a `Problem`: programs read `code` and `retryable`,
people read `error_message` and `hint`. docs/api.md has examples in curl, Python and JavaScript.

Programs on the same machine need no key unless `INGRESS_API_KEY` is set. All others send it with
every request, as `X-Internal-API-Key` or as `Authorization: Bearer`.
"""
TAGS = [
    {"name": "jobs", "description": "Jobs that run in the background: submit, follow, cancel."},
    {"name": "streams", "description": "Jobs that are watched while they are made."},
    {"name": "batches", "description": "Many jobs in one request, with one state and one webhook."},
    {"name": "synchronous", "description": "Answers that wait for the work itself."},
    {"name": "avatars", "description": "What is prepared of a video ahead of its jobs."},
    {"name": "uploads", "description": "Files that have no address, sent to the worker."},
    {"name": "results", "description": "Finished videos, where they are kept on the worker."},
    {"name": "health", "description": "Whether a job can run, and what is running."},
    {"name": "operation", "description": "What an operator tells a worker while it runs."},
]


def operation_id(route: APIRoute) -> str:
    """Return the name of a route's function, which clients are generated with."""
    return route.name
