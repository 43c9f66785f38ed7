"""The job queue that workers poll: its client (`orchestrator.client`) and its errors
(`orchestrator.errors`), and the decisions of the service (`orchestrator.routing`,
`orchestrator.scaling`). The service itself is not part of this package yet.
"""

__all__: list[str] = []
