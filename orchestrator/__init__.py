"""The job queue that workers poll: its client (`orchestrator.client`), its errors
(`orchestrator.errors`), the decisions of the service (`orchestrator.routing`,
`orchestrator.scaling`) and its bucket (`orchestrator.outputs`). The service itself is not part of
this package yet.
"""

__all__: list[str] = []
