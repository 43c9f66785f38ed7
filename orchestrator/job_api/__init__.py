"""`/v1/avatar/jobs`, as the orchestrator and the ingress of a worker both serve it."""
