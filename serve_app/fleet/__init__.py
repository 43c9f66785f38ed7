"""A worker of a fleet: it claims jobs from an orchestrator and reports on them."""
