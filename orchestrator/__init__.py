"""The job queue that workers poll. Today its client (`orchestrator.client`) and what can go wrong
with it (`orchestrator.errors`); the service itself is not here yet.
"""

__all__: list[str] = []
