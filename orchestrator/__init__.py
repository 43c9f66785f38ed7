"""The job queue that workers poll: the service (`orchestrator.service`, `orchestrator.store`), what
it decides and signs (`orchestrator.routing`, `orchestrator.scaling`, `orchestrator.outputs`), and
the worker's half of its protocol (`orchestrator.client`).
"""

__all__: list[str] = []
