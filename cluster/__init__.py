"""Rented GPUs: machines at five vendors, as fleets of workers and as one Ray cluster."""
