"""A container that does one job: what its environment asks for, and how a signal ends it."""
