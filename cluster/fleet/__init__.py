"""Fleets of cells: independent machines of the worker image that poll the orchestrator."""
