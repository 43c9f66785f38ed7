"""Renting machines: one interface, five vendors, and a ledger of what was rented."""
