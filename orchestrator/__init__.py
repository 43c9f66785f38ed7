"""The job queue that workers poll: its client (`orchestrator.client`) and its errors
(`orchestrator.errors`). The service itself is not part of this package yet.
"""

__all__: list[str] = []
